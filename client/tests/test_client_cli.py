import io
import json
import sys

import fake_triton_service as service
import pytest

from refrag_client import InvalidRequest
from refrag_client.cli.main import main
from refrag_client.passages import read_passages


@pytest.fixture
def ask(url):
    def run(*arguments):
        return main(["ask", "who?", "--url", url, *arguments])

    return run


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_json_lines_hold_strings_or_objects(tmp_path):
    lines = '"a b"\n{"id": 1, "text": "c"}\n\n{"passage": "d"}\n{"content": "e"}\n'
    assert read_passages(write(tmp_path, "p.txt", lines)) == ["a b", "c", "d", "e"]


def test_plain_text_is_split_at_blank_lines(tmp_path):
    text = '"Hello," he said,\nand left.\n \n\nThe end.\n'
    assert read_passages(write(tmp_path, "p.txt", text)) == ['"Hello," he said,\nand left.', "The end."]


def test_a_dash_is_stdin(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Zoë.\n\nBob.".encode())))
    assert read_passages("-") == ["Zoë.", "Bob."]


@pytest.mark.parametrize(
    "text",
    [
        '["a", "b"]',
        '[\n  {"contents": "a"},\n  {"page_content": "b", "metadata": {"source": "x"}}\n]',
        '{"documents": [{"content": "a"}, {"body": "b"}]}',
        '{\n "query": "q",\n "results": [\n {"text": "a", "content": "a"},\n "b"]}',
    ],
)
@pytest.mark.parametrize("name", ["p.json", "p.txt", "p.jsonl"])
def test_other_common_layouts_are_read_as_they_are_meant(tmp_path, text, name):
    assert read_passages(write(tmp_path, name, text)) == ["a", "b"]


def test_plain_text_may_begin_with_a_bracket(tmp_path):
    assert read_passages(write(tmp_path, "p.txt", "[1] Ada built it.\n\n{sic}")) == ["[1] Ada built it.", "{sic}"]


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("p.json", '["a", {"title": "b"}]', "element 2: no passage among the keys title; give a string or an object"),
        ("p.json", '{"documents": ["a"], "docs": ["b"]}', "the lists documents and docs; leave one"),
        ("p.json", '{"documents": [["a"]]}', "documents, element 1: no passage but an array"),
        ("p.json", '["a",', "p.json is not JSON"),
        ("p.jsonl", '{"text": "a", "body": "b"}\n"c"', "line 1: several texts, text and body"),
        ("p.jsonl", '"c"\n{"text": null}', "line 2: no passage, since text is null"),
        ("p.csv", "id,text\n1,a", "is a .csv file; convert it"),
    ],
)
def test_what_could_be_misread_is_refused_by_place_and_key(tmp_path, name, text, what):
    with pytest.raises(InvalidRequest, match=what):
        read_passages(write(tmp_path, name, text))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('"a"\nb', "line 2: not JSON"),
        ('{"title": "a"}', "no passage"),
        ("[1]", "no passage"),
        ('"a"\n"\\ud800"', "line 2: the lone surrogate"),
        ('"a"\n' + "[" * 5000 + "]" * 5000, "line 2: not JSON"),
    ],
)
def test_bad_lines_are_named(tmp_path, text, what):
    with pytest.raises(InvalidRequest, match=what):
        read_passages(write(tmp_path, "p.jsonl", text))


def test_ask_prints_text_then_summary(ask, capsys, fake, tmp_path):
    assert ask("--passages", write(tmp_path, "p.txt", "a\n\nb"), "--expand-fraction", "0.25", "--seed", "3") == 0
    out, err = capsys.readouterr()
    assert out == "Ada built it.\n"
    assert "3 output tokens · 64 context tokens · 4 chunks, 3 of them stored, 1 expanded · 27 prompt slots" in err
    inputs = service.read_inputs(fake.requests[0])
    assert (inputs["passages"].tolist(), inputs["seed"][0]) == ([b"a", b"b"], 3)
    assert "policy" not in inputs and "stop_words" not in inputs


def test_an_error_after_some_text_stands_on_a_line_of_its_own(ask, capsys, fake):
    def reply(fake, request):
        yield service.piece_response("Ada", 0)
        yield service.error_response("ServerUnavailable", "the server is stopping")

    fake.reply = reply
    assert ask() == 1
    assert capsys.readouterr() == ("Ada\n", "refrag: the server is stopping\n")


def test_ask_searches_a_folder_for_passages(ask, fake, tmp_path):
    write(tmp_path, "people.txt", "He who builds.\n\n" + "Nobody.\n\n" * 60)
    write(tmp_path, "tides.md", "Two a day.")
    assert ask("--corpus", str(tmp_path), "--num-passages", "1") == 0
    [passage] = service.read_inputs(fake.requests[0])["passages"].tolist()
    assert passage.startswith(b"people.txt\nHe who builds.")


def test_a_corpus_that_is_no_folder_ends_with_the_code_of_a_wrong_request(ask, capsys, tmp_path):
    assert ask("--corpus", str(tmp_path / "nowhere")) == 2
    assert "is not a folder to read (No such file or directory)" in capsys.readouterr().err


def test_a_corpus_without_a_hit_is_not_asked_without_passages(ask, capsys, fake, tmp_path):
    write(tmp_path, "tides.md", "Two a day.")
    assert ask("--corpus", str(tmp_path)) == 2
    assert "shares a word with the question" in capsys.readouterr().err and not fake.requests


def test_a_number_of_passages_needs_a_corpus(ask, capsys):
    assert ask("--num-passages", "3") == 2
    assert "add one" in capsys.readouterr().err


def test_ask_leaves_the_search_of_a_collection_to_the_server(ask, fake):
    assert ask("--collection", "birds", "--num-passages", "4", "--filter", '{"lang": "en"}') == 0
    inputs = service.read_inputs(fake.requests[0])
    assert fake.requests[0].model_name == "refrag_rag"
    assert (inputs["collection"][0], inputs["num_passages"][0]) == (b"birds", 4)


@pytest.mark.parametrize("option", [("--filter", "{}"), ("--search-mode", "text")])
def test_the_options_of_a_search_need_a_collection(ask, capsys, option):
    assert ask(*option) == 2
    assert "is of a search in a --collection" in capsys.readouterr().err


def test_passages_and_a_corpus_exclude_each_other(ask, capsys, tmp_path):
    with pytest.raises(SystemExit):
        ask("--corpus", str(tmp_path), "--passages", "-")
    assert "not allowed with" in capsys.readouterr().err


def test_compare_asks_the_plain_decoder_too(ask, capsys, fake):
    assert ask("--compare", "--expand-fraction", "0.25") == 0
    fractions = [service.read_inputs(request)["expand_fraction"][0] for request in fake.requests]
    assert fractions == [0.25, 1.0]
    out, err = capsys.readouterr()
    assert out == "compressed:\nAda built it.\n\nplain decoder:\nAda built it.\n"
    assert "TTFT plain / compressed: " in err


def test_what_is_compared_is_plain_whatever_bounds_the_compressed_prompt(ask, fake):
    assert ask("--compare", "--policy", "none", "--max-prompt-slots", "30", "--min-confidence", "0.5") == 0
    compressed, plain = (service.read_inputs(request) for request in fake.requests)
    assert (compressed["policy"][0], plain["policy"][0]) == (b"none", b"all")
    assert not {"max_prompt_slots", "min_confidence"} & set(plain)


def test_json_prints_one_object(ask, capsys):
    assert ask("--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["text"], answer["statistics"]["prompt_slots"]) == ("Ada built it.", 27)


def test_json_comparison_holds_both(ask, capsys):
    assert ask("--json", "--compare") == 0
    assert set(json.loads(capsys.readouterr().out)) == {"compressed", "plain", "ttft_ratio"}


def test_the_least_confidence_is_sent_where_it_is_named(ask, fake):
    assert ask("--min-confidence", "0.75") == 0
    assert service.read_inputs(fake.requests[0])["min_confidence"].tolist() == [0.75]


def test_a_raised_budget_is_told(ask, capsys, fake):
    fake.reply = service.answer_with(num_expanded_chunks=[3])
    assert ask("--min-confidence", "0.75") == 0
    assert "4 chunks, 3 of them stored, 3 expanded for a budget of 1 · 27 prompt slots" in capsys.readouterr().err


def test_a_bad_request_exits_2(ask, capsys, fake):
    fake.reply = service.fail_with('{"type": "InvalidRequest", "message": "expand_fraction is -0.1"}')
    assert ask("--expand-fraction", "-0.1") == 2
    assert capsys.readouterr().err == "refrag: expand_fraction is -0.1\n"


def test_a_missing_file_exits_2(ask, capsys):
    assert ask("--passages", "no/such/file") == 2
    assert "cannot read passages from no/such/file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text"),
    [("p.txt", ""), ("p.txt", " \n\n"), ("p.jsonl", "\n"), ("p.json", "[]"), ("p.json", '{"docs": []}')],
)
def test_a_file_without_passages_is_named_and_not_asked_without(ask, capsys, fake, tmp_path, name, text):
    assert ask("--passages", write(tmp_path, name, text)) == 2
    assert f"{name} holds no passage; give one at least" in capsys.readouterr().err and not fake.requests


def test_standard_input_without_passages_is_told(ask, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    assert ask("--passages", "-") == 2
    assert "standard input holds no passage" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--passages", "--passages names no file"),
        ("--document", "cannot read the document"),
        ("--corpus", "--corpus names no folder"),
    ],
)
def test_an_option_whose_file_or_folder_has_no_name_is_refused(ask, capsys, fake, option, told):
    assert ask(option, "") == 2
    assert told in capsys.readouterr().err and not fake.requests


def test_no_server_exits_1(capsys):
    assert main(["ask", "who?", "--url", "127.0.0.1:1"]) == 1
    assert capsys.readouterr().err.startswith("refrag: no server answers at 127.0.0.1:1")


def test_control_c_stops_the_request_and_exits_130(ask, capsys, fake):
    fake.reply = service.interrupt_the_caller
    assert ask() == 130
    assert fake.stopped_ids == [fake.requests[0].id]


def test_unknown_options_exit_2():
    with pytest.raises(SystemExit) as caught:
        main(["ask", "who?", "--expand", "1", "--no-such"])
    assert caught.value.code == 2
