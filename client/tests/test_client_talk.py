"""Conversations, documents and citations on the client's side: what is sent, printed and refused."""

import io
import json
import sys

import fake_triton_service as service
import numpy as np
import pytest
from test_client_store import FakeStore

from refrag_client import GenerateRequest, InvalidRequest
from refrag_client.cli.main import main
from refrag_client.corpus import MAX_WORDS
from refrag_client.documents import read_document


@pytest.fixture
def piped(monkeypatch):
    def feed(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return feed


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def typed(monkeypatch):
    """Lines that a person types; an exception among them is what happens instead."""

    def type_in(*lines):
        waiting = iter(lines)

        def read(prompt):
            line = next(waiting, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr(sys, "stdin", Terminal())
        monkeypatch.setattr("builtins.input", read)

    return type_in


def sent_turns(request):
    history = service.read_inputs(request).get("history", [])
    return [(turn["role"], turn["content"]) for turn in map(json.loads, history)]


def test_texts_and_mappings_are_sent_as_the_same_turns(client, fake):
    as_texts = ["Who?", 'Ada "the {builder}" Zoë.']
    as_mappings = [{"role": "user", "content": as_texts[0]}, {"role": "assistant", "content": as_texts[1]}]
    client.generate("And when?", history=as_texts)
    client.generate("And when?", history=as_mappings)
    client.generate("And when?")
    assert (
        sent_turns(fake.requests[0])
        == sent_turns(fake.requests[1])
        == [
            ("user", as_texts[0]),
            ("assistant", as_texts[1]),
        ]
    )
    assert "history" not in service.read_inputs(fake.requests[2])


@pytest.mark.parametrize(
    ("history", "named"),
    [
        ("Who?", "history is a single str"),
        ({"role": "user", "content": "Who?"}, "history is a single dict"),
        (["Who?", {"role": "assistant", "content": "Ada"}], "history holds a str; give"),
        ([3, 4], "history holds a int; give"),
        ([{"role": "user", "content": b"x"}], "history holds what JSON cannot"),
        ([{"role": "user", "content": "\ud800"}], "history has a lone surrogate"),
    ],
)
def test_what_no_tensor_can_hold_is_refused(client, history, named):
    with pytest.raises(InvalidRequest, match=named):
        client.generate("And when?", history=history)


def test_a_request_keeps_its_turns_when_it_is_copied():
    request = GenerateRequest("And when?", history=["Who?", "Ada."])
    assert GenerateRequest("And when?", history=request.history).history == request.history


def chat(url, *options):
    return main(["chat", "--url", url, *options])


def test_piped_questions_are_answered_in_turn_with_all_turns_before(url, fake, piped, capsys):
    piped(b"Who?\n\n  And when?  \n/quit\nNever asked\n")
    assert chat(url) == 0
    assert capsys.readouterr().out == "Ada built it.\nAda built it.\n"
    assert [sent_turns(request) for request in fake.requests] == [
        [],
        [("user", "Who?"), ("assistant", "Ada built it.")],
    ]
    assert service.read_inputs(fake.requests[1])["text_input"][0] == b"And when?"


def test_a_new_conversation_has_no_turns(url, fake, piped):
    piped(b"Who?\n/new\nWho?\n")
    assert chat(url) == 0
    assert sent_turns(fake.requests[1]) == []


def test_a_piped_question_that_is_refused_ends_the_command(url, fake, piped, capsys):
    fake.reply = service.fail_with('{"type": "InvalidRequest", "message": "the window is full"}')
    piped(b"Who?\nWho?\n")
    assert chat(url) == 2
    assert capsys.readouterr().err == "refrag: the window is full\n"
    assert len(fake.requests) == 1


def test_at_a_terminal_the_conversation_goes_on_without_what_failed(url, fake, typed, capsys):
    replies = iter([service.fail_with("broken"), service.answer_in_pieces, service.answer_in_pieces])
    fake.reply = lambda *arguments: next(replies)(*arguments)
    typed("Who?", "And who?", "And when?")
    assert chat(url) == 0
    out, err = capsys.readouterr()
    assert out == "Ada built it.\nAda built it.\n" and "refrag: broken" in err
    assert sent_turns(fake.requests[2]) == [("user", "And who?"), ("assistant", "Ada built it.")]


def test_control_c_stops_an_answer_and_at_the_prompt_the_conversation(url, fake, typed):
    replies = iter([service.interrupt_the_caller, service.answer_in_pieces])
    fake.reply = lambda *arguments: next(replies)(*arguments)
    typed("Who?", "And who?", KeyboardInterrupt())
    assert chat(url) == 130
    assert fake.stopped_ids == [fake.requests[0].id]
    assert sent_turns(fake.requests[1]) == []


def test_a_follow_up_searches_with_the_question_before(url, fake, piped, tmp_path):
    (tmp_path / "people.txt").write_text("Mara keeps a parrot.\n")
    (tmp_path / "tides.txt").write_text("The tide turns at noon.\n")
    piped(b"Which parrot?\nAnd where?\n")
    assert chat(url, "--corpus", str(tmp_path), "--num-passages", "1") == 0
    asked = [service.read_inputs(request)["passages"].tolist() for request in fake.requests]
    assert asked == [[b"people.txt\nMara keeps a parrot."]] * 2


def test_questions_and_passages_cannot_both_be_standard_input(url, capsys):
    assert chat(url, "--passages", "-") == 2
    assert "give a file" in capsys.readouterr().err


def test_binary_questions_are_named(url, piped, capsys):
    piped(b"\xff\xfe\n")
    assert chat(url) == 2
    assert "standard input is not UTF-8" in capsys.readouterr().err


def test_turns_that_were_left_out_are_told(url, fake, piped, capsys):
    fake.reply = service.answer_with(num_cut_turns=np.array([6], np.int32))
    piped(b"Who?\n")
    assert chat(url) == 0
    assert "the window is full: the first 6 turns of the conversation are left out" in capsys.readouterr().err


def test_citations_are_printed_behind_the_answer(url, capsys, tmp_path):
    (tmp_path / "p.txt").write_text("Nobody.\n\nThe tall\nkeeper came.\n")
    assert main(["ask", "who?", "--url", url, "--passages", str(tmp_path / "p.txt"), "--citations"]) == 0
    assert capsys.readouterr().out == "Ada built it.\npassage 1, characters 4 to 9, 75% of the weight: tall\n"


def test_without_citations_the_remedy_is_told(url, fake, capsys):
    fake.reply = service.answer_with(citations=np.zeros((0, 3), np.int32))
    assert main(["ask", "who?", "--url", url, "--citations"]) == 0
    assert "raise --expand-fraction" in capsys.readouterr().out


def test_json_holds_the_citations(url, capsys):
    assert main(["ask", "who?", "--url", url, "--json", "--citations"]) == 0
    assert json.loads(capsys.readouterr().out)["citations"] == [{"passage": 1, "start": 4, "end": 9}]


DOCUMENT = "\n\n".join(
    " ".join(f"In chapter {chapter} lamp {lamp} burns!\t  Who lit it?" for lamp in range(60)) for chapter in range(40)
)


@pytest.mark.parametrize("command", [["summarize"], ["ask", "who?", "--document"]], ids=["summarize", "ask"])
@pytest.mark.parametrize("source", ["file", "stdin"])
def test_a_document_is_encoded_ahead_and_sent_whole_in_its_order(url, fake, capsys, tmp_path, piped, command, source):
    fake.store = FakeStore()
    (tmp_path / "d.txt").write_text(DOCUMENT)
    piped(DOCUMENT.encode())
    name = str(tmp_path / "d.txt") if source == "file" else "-"
    assert main([*command, name, "--url", url]) == 0
    [request] = fake.requests
    passages = [passage.decode() for passage in service.read_inputs(request)["passages"]]
    places = [DOCUMENT.index(passage) for passage in passages]
    assert places == sorted(places)
    assert " ".join(passages).split() == DOCUMENT.split()
    assert fake.store.passages == passages
    assert fake.store.num_calls > 1
    out, err = capsys.readouterr()
    assert out == "Ada built it.\n"
    assert "100%" in err and "chunks encoded" in err


def test_a_summary_has_an_instruction_and_more_tokens_than_an_answer(url, fake, tmp_path):
    fake.store = FakeStore()
    (tmp_path / "d.txt").write_text("A lamp.")
    assert main(["summarize", str(tmp_path / "d.txt"), "--url", url]) == 0
    inputs = service.read_inputs(fake.requests[0])
    assert (inputs["text_input"][0], inputs["max_tokens"][0]) == (b"Summarize the document.", 256)


def test_a_server_whose_store_outlives_nothing_encodes_with_the_request(url, fake, tmp_path, capsys):
    fake.store = FakeStore()
    fake.store.stats = lambda inputs: ({"fingerprint": "ab" * 16, "chunk_size": 16, "tiers": []}, {})
    (tmp_path / "d.txt").write_text("A lamp.")
    assert main(["summarize", str(tmp_path / "d.txt"), "--url", url]) == 0
    assert fake.store.num_calls == 0


def test_a_document_is_asked_about_though_the_store_takes_nothing(url, fake, tmp_path, capsys):
    fake.store = FakeStore()
    fake.store.num_failures = 1
    (tmp_path / "d.txt").write_text(DOCUMENT)
    assert main(["ask", "who?", "--document", str(tmp_path / "d.txt"), "--url", url]) == 0
    assert fake.store.num_calls == 1
    out, err = capsys.readouterr()
    assert out == "Ada built it.\n"
    assert "nothing more is stored ahead of the question: the store is full" in err


@pytest.mark.parametrize("text", ["word " * 1000, "x" * 100_000, "A b. " * 500, "a\n\n\nb\r\n\r\nc", "- é 🎵\n" * 400])
def test_passages_of_a_document_are_stretches_of_it_of_so_many_words(tmp_path, text):
    (tmp_path / "d.txt").write_bytes(text.encode())
    passages = read_document(str(tmp_path / "d.txt"))
    assert all(passage in text and len(passage.split()) <= MAX_WORDS for passage in passages)
    assert " ".join(passages).split() == text.split()


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("d.txt", b"PK\x03\x04\0\0", r"d.txt is a binary file \(a zero byte at 4\)"),
        ("d.txt", b"\x89PNG\r\n", r"d.txt is a binary file, or not UTF-8 \(at byte 0\)"),
        ("d.txt", "Zoë".encode("utf-16"), r"d\.txt is UTF-16 text; convert it"),
        ("d.PDF", b"%PDF-1.7", r"d\.PDF is a \.pdf file; convert it"),
        ("d.txt", b" \n\n", r"d\.txt holds no text"),
    ],
)
def test_what_is_no_text_is_refused_by_name(tmp_path, name, content, named):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match=named):
        read_document(str(path))


def test_a_document_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InvalidRequest, match=r"cannot read the document .*nowhere: No such file"):
        read_document(str(tmp_path / "nowhere"))


def test_binary_standard_input_is_named(piped):
    piped(b"\0\1")
    with pytest.raises(InvalidRequest, match="standard input is a binary file"):
        read_document("-")
