"""The benchmark of accuracy at equal latency: its passages, its settings, what it compares, and its tables."""

import json
import shutil
from argparse import Namespace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from openai import BadRequestError, OpenAI

from perf.accuracy import ask, choose_passages, identify, list_settings, never_reuse, read_answer
from perf.accuracy_report import PLAIN, Setting, compare_at_equal_latency, markdown, summarise_answers
from refrag.data.questions.row import QuestionRow, SourcePassage
from refrag.decoders.base import Limits, MixedPrompt, SamplingParams, check_prompt
from refrag.errors import InvalidRequest

DECODER = Path(__file__).parents[2] / "model_repository" / "decoder" / "config.pbtxt"
POOL = {f"p{number}": SourcePassage(f"p{number}", "", f"text {number}") for number in range(10)}
TOO_LONG = "the prompt needs 9000 slots; send fewer passages"


def row(name, listed, gold=None):
    return QuestionRow(name, "set", "who?", ("Ada",), True, tuple(POOL[each] for each in listed), gold)


ROWS = [row("one", ["p5", "p3"], (1,)), row("two", ["p7", "p5", "p8"], (0,))]


def answer(seconds, f1=1.0, **more):
    scores = {"contains": float(f1 > 0), "exact_match": float(f1 == 1), "f1": f1}
    sizes = {"prompt_slots": 100, "context_tokens": 900, "num_retrieved": 8}
    return {"first_token_seconds": seconds, **scores, **sizes, **more}


def answers(*seconds, f1=1.0):
    return {str(number): answer(each, f1) for number, each in enumerate(seconds)}


def plain(**by_passages):
    return [(Setting(int(name[1:]), PLAIN, {}), asked) for name, asked in by_passages.items()]


def chosen(most, seed=0):
    passages, counts = choose_passages(ROWS, POOL, most, seed)
    return [each.id for each in passages], counts


def test_answers_are_told_apart_by_what_the_files_hold(tmp_path):
    for name in ("questions.jsonl", "passages.jsonl"):
        (tmp_path / name).write_text("as it was")
    (tmp_path / "config.json").write_text("{}")
    numbers = {"window": 512, "max_tokens": 8, "seed": 0, "num_rows": 2}
    options = Namespace(checkpoint=tmp_path, questions=tmp_path / "questions.jsonl", pool=None, **numbers)
    before = identify(options, {})
    assert identify(options, {}) == before
    for name, part in (("questions.jsonl", "questions"), ("passages.jsonl", "pool"), ("config.json", "checkpoint")):
        (tmp_path / name).write_text("changed")
        assert {key for key, value in identify(options, {}).items() if value != before[key]} == {part}
        before = identify(options, {})


def test_evidence_is_indexed_first_then_what_the_rows_list_then_others():
    ids, counts = chosen(6)
    assert ids[:4] == ["p3", "p7", "p5", "p8"]
    assert len(set(ids)) == 6
    assert counts == {"num_passages": 6, "num_in_file": 10, "num_gold": 2, "num_listed": 2, "num_others": 2}
    assert chosen(6) == (ids, counts)
    assert chosen(3)[1] == {"num_passages": 3, "num_in_file": 10, "num_gold": 2, "num_listed": 1, "num_others": 0}


def test_all_passages_are_indexed_without_a_bound_and_evidence_is_never_left_out():
    assert sorted(chosen(None)[0]) == sorted(POOL)
    with pytest.raises(InvalidRequest, match="max_passages is 1; 2 passages hold the evidence"):
        chosen(1)


def test_every_way_has_the_same_passages_and_plain_has_further_ones():
    options = Namespace(passages=[8, 32], plain_passages=[4, 8], expand_fractions=[0.0, 0.1], slots=[2048])
    settings = list_settings(options)
    assert [(one.way, one.passages) for one in settings[:3]] == [(PLAIN, 4), (PLAIN, 8), (PLAIN, 32)]
    assert [one.name for one in settings[3:5]] == ["p=0, 8 passages", "p=0, 32 passages"]
    assert settings[-1] == Setting(32, "2048 slots", {"max_prompt_slots": 2048})


def test_no_prompt_fills_a_block_of_the_repository_that_is_measured(tmp_path):
    (tmp_path / "decoder").mkdir()
    path = Path(shutil.copy(DECODER, tmp_path / "decoder"))
    never_reuse(tmp_path, 8192)
    changed = set(path.read_text().splitlines()) - set(DECODER.read_text().splitlines())
    assert changed == {'parameters { key: "block_size" value { string_value: "8192" } }'}


def refused_by_the_decoder():
    prompt = MixedPrompt(torch.zeros(30, dtype=torch.long), torch.zeros(0, 4))
    with pytest.raises(InvalidRequest) as raised:
        check_prompt(prompt, SamplingParams(max_tokens=16), Limits(vocab_size=10, width=4, window=40))
    return str(raised.value)


def ask_endpoint(status, content):
    """Return what `ask` makes of an endpoint's reply, and the body of its request."""
    sent = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self):
            sent.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(status)
            self.send_header("content-type", "application/json" if status == 400 else "text/event-stream")
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *about):
            pass

    with HTTPServer(("127.0.0.1", 0), Endpoint) as server:
        Thread(target=server.handle_request, daemon=True).start()
        with OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none", max_retries=0) as api:
            return ask(api, ROWS[0], Setting(2, PLAIN, {"expand_fraction": 1.0}), max_tokens=16), sent[0]


def error(message):
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}})


def test_a_prompt_that_does_not_fit_is_told_from_other_faults():
    message = refused_by_the_decoder()
    assert "the decoder's window is 40" in message
    answered, body = ask_endpoint(400, error(message))
    assert answered == {"refusal": message}
    assert (body["num_passages"], body["temperature"], body["stream"]) == (2, 0, True)
    assert body["refrag"]["expand_fraction"] == 1.0
    with pytest.raises(BadRequestError, match="no collection"):
        ask_endpoint(400, error("there is no collection 'measured'"))


def test_a_streamed_answer_has_its_scores_and_its_time():
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "refrag"}
    first = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Ada"}, "finish_reason": None}]}
    last = {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}]}
    usage = {"prompt_tokens": 70, "completion_tokens": 1, "total_tokens": 71}
    details = {"prompt_tokens_details": {"prompt_slots": 70, "context_tokens": 800}}
    objects = [first, {**last, "refrag": {"passages": [{"id": "p3"}]}}, {"choices": [], "usage": {**usage, **details}}]
    events = [f"data: {json.dumps({**head, **each})}\n\n" for each in objects]
    answered, _ = ask_endpoint(200, "".join([*events, "data: [DONE]\n\n"]))
    assert answered.pop("first_token_seconds") > 0
    scores = {"contains": 1.0, "f1": 1.0, "exact_match": 1.0, "gold_retrieved": 1.0}
    assert answered == {"text": "Ada", **scores, "num_retrieved": 1, "prompt_slots": 70, "context_tokens": 800}


def test_an_answer_is_read_from_the_objects_of_its_stream():
    def part(text, **more):
        return {"choices": [{"delta": {"content": text}}], **more}

    passages = [{"id": "p3"}, {"id": "p9"}]
    usage = {"prompt_tokens_details": {"prompt_slots": 70, "context_tokens": 800}}
    parts = [part("Ada"), part(" Lovelace", refrag={"passages": passages}), {"choices": [], "usage": usage}]
    read = read_answer(ROWS[0], parts)
    assert read["text"] == "Ada Lovelace"
    assert (read["contains"], read["exact_match"], read["f1"]) == (1.0, 0.0, pytest.approx(2 / 3))
    assert (read["gold_retrieved"], read["num_retrieved"], read["prompt_slots"]) == (1.0, 2, 70)
    assert read_answer(ROWS[1], parts)["gold_retrieved"] == 0.0
    assert "gold_retrieved" not in read_answer(row("three", ["p3"]), parts)


def test_at_equal_latency_plain_has_the_most_passages_that_are_not_later():
    fast, equal, slow = answers(0.1, 0.1, f1=0.5), answers(0.3, 0.1, f1=0.5), answers(0.9, 0.9)
    compared = compare_at_equal_latency(answers(0.2, 0.2), plain(n2=fast, n8=equal, n32=slow), seed=0)
    assert compared["plain_passages"] == 8
    assert (compared["first_token_ms"], compared["plain_first_token_ms"]) == (200.0, 200.0)
    assert compared["f1"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert compared["contains"]["value"] == 0 and compared["exact_match"]["value"] == 1


def test_no_plain_setting_is_named_where_all_are_later():
    compared = compare_at_equal_latency(answers(0.1), plain(n2=answers(0.2)), seed=0)
    assert compared == {"plain_passages": None, "first_token_ms": 100.0}


def test_times_and_differences_are_of_the_questions_that_both_answered():
    mostly = {"0": answer(0.1, 0.0), "1": answer(0.1, 0.0)}
    compressed = answers(0.2, 0.2, 9.0)
    compared = compare_at_equal_latency(compressed, plain(n8=mostly), seed=0)
    assert (compared["num_questions"], compared["first_token_ms"], compared["f1"]["value"]) == (2, 200.0, 1.0)
    # One of three is too few to stand for the setting.
    assert compare_at_equal_latency(compressed, plain(n8={"0": mostly["0"]}), seed=0)["plain_passages"] is None


def test_what_does_not_fit_is_counted_and_shown_with_the_reason():
    settings = [Setting(8, PLAIN, {}), Setting(128, PLAIN, {}), Setting(128, "p=0", {})]
    retrieved = {key: {**one, "gold_retrieved": 1.0} for key, one in answers(0.2, 0.3).items()}
    refused = {key: {"refusal": TOO_LONG} for key in retrieved}
    asked = dict(zip((one.name for one in settings), (answers(0.1, 0.2, f1=0.0), refused, retrieved), strict=True))
    summary = summarise_answers(settings, asked, seed=0)
    short, long, compressed = summary["rows"]
    assert long == {"passages": 128, "way": PLAIN, "num_questions": 0, "num_unfit": 2, "refusal": TOO_LONG}
    assert short["num_unfit"] == 0 and "gold_retrieved" not in short
    assert compressed["gold_retrieved"]["value"] == 1 and compressed["first_token"]["n"] == 2
    index = {"num_passages": 1000, "num_gold": 2, "num_listed": 8, "num_others": 990}
    run = {"data": "nq.jsonl.gz", "num_rows": 2, "command": "python -m perf.accuracy", "machine": "a machine"}
    text = markdown({**run, "commit": "abc", "collection": index, **summary})
    assert f"plain, 128 passages does not fit for 2 of 2 questions; the first refusal: {TOO_LONG}" in text
    assert "2 questions of nq.jsonl.gz over 1,000 passages: 2 with the evidence, 8 listed" in text
    assert "250 ms" in text and "150 ms" in text and "+100.0 (+100.0 to +100.0)" in text


def test_a_compressed_setting_that_nothing_fits_is_compared_with_nothing():
    settings = [Setting(8, PLAIN, {}), Setting(8, "10 slots", {})]
    asked = {settings[0].name: answers(0.1), settings[1].name: {"0": {"refusal": TOO_LONG}}}
    summary = summarise_answers(settings, asked, seed=0)
    assert summary["at_equal_latency"] == []
    assert [row["num_unfit"] for row in summary["rows"]] == [0, 1]
