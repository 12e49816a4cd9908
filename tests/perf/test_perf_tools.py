"""The tools compute the right figures from what they read; test_perf_server runs them on the real server."""

import json
import random
import shutil
import sys
import threading
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from perf import decoders, memory, prefill, ttft
from perf.analytic import predicted_speedup
from perf.analyzer import add_measured, read_export
from perf.load import Callers, describe
from perf.prefill import Case
from perf.stages import Reading, compute_seconds, queue_seconds, stage_seconds
from refrag.errors import SetupError
from refrag_client import Answer, Statistics

ROOT = Path(__file__).parents[2]
PHASES = {"queue": 0.001, "compute_input": 0.0, "compute_infer": 0.01, "compute_output": 0.0}
MODELS = ("preprocessing", "chunk_encoder", "expansion_policy", "projector")


def readings(num_requests, ttft, admission):
    """Return readings before and after requests that each wait 1 ms for every model and compute 10 ms in it."""
    zero = {name: dict.fromkeys(PHASES, 0.0) for name in MODELS}
    spent = {name: {phase: num_requests * seconds for phase, seconds in PHASES.items()} for name in MODELS}
    before = Reading(zero, {"ttft": (0.0, 0), "queue": (0.0, 0)})
    engine = {"ttft": (num_requests * ttft, num_requests), "queue": (num_requests * admission, num_requests)}
    return before, Reading(spent, engine)


def test_stages_add_up_to_what_the_client_waited():
    before, after = readings(4, ttft=0.1, admission=0.05)
    stages = stage_seconds(before, after, ttft=0.12)
    assert sum(stages.values()) == pytest.approx(0.12)
    assert stages["preprocessing"] == pytest.approx(0.011)
    assert stages["decoder"] == pytest.approx(0.05)
    # A request's arrival is noted when preprocessing begins, so the millisecond before it is not in the times.
    assert stages["client, gRPC"] == pytest.approx(0.019)
    assert stages["hand-overs"] == pytest.approx(0.007)


def test_waiting_and_computing_are_told_apart():
    before, after = readings(2, ttft=0.1, admission=0.05)
    assert queue_seconds(before, after)["projector"] == pytest.approx(0.001)
    assert compute_seconds(before, after)["projector"] == pytest.approx(0.01)


def test_readings_without_a_request_between_them_are_refused():
    before, _ = readings(1, 0.1, 0.1)
    with pytest.raises(AssertionError, match="no request was answered"):
        stage_seconds(before, before, 0.1)


def test_the_papers_model_gives_its_own_figures():
    """The paper's text says 25.6 times for 16,384 tokens of LLaMA-2-7B at k=16."""
    assert predicted_speedup(16384, 1024, 4096) == pytest.approx(25.6, rel=0.01)
    assert predicted_speedup(100, 100, 192) == 1.0


EXPORT = """{"experiments":[{"requests":[
    {"timestamp":1000000000,"response_timestamps":[1100000000,1150000000,1200000000],
     "response_outputs":[{"text_output":"nan, inf","token_log_probs":-1.5},{"token_log_probs":[-2,1]},{}]},
    {"timestamp":1050000000,"response_timestamps":[1250000000],"response_outputs":[{"token_log_probs":-3}]}
]}]}"""


def test_the_ensemble_that_is_measured_lacks_outputs_that_break_an_export(tmp_path):
    source = ROOT / "model_repository" / "refrag" / "config.pbtxt"
    (tmp_path / "refrag").mkdir()
    shutil.copyfile(source, tmp_path / "refrag" / "config.pbtxt")
    add_measured(tmp_path)
    whole, measured = (
        text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        for path in (source, tmp_path / "refrag_measured" / "config.pbtxt")
    )
    lacking = {one.name for one in whole.output} - {one.name for one in measured.output}
    assert lacking == {"token_log_probs", "passage_weights"}
    mapped = [tensor for step in measured.ensemble_scheduling.step for tensor in step.output_map.values()]
    assert not lacking.intersection(mapped) and {one.name for one in measured.output} <= set(mapped)
    assert measured.input == whole.input and measured.name == "refrag_measured"


def test_an_export_that_broke_off_says_why():
    with pytest.raises(SetupError, match=r"is no JSON .*does an FP32 output have no elements"):
        read_export(EXPORT[:300], 2)


def test_responses_that_hold_something_are_timed():
    first, second = read_export(EXPORT, 2)
    assert first.ttft == pytest.approx(0.1)
    assert len(first.responses) == 2, "the empty one only ends the stream"
    assert first.inter_token == pytest.approx(0.05)
    assert second.total == pytest.approx(0.2)


def test_a_request_without_an_answer_ends_the_run():
    with pytest.raises(SetupError, match="2 of 3 requests were answered"):
        read_export(EXPORT, 3)


def test_throughput_is_from_the_first_request_to_the_last_response():
    assert describe(read_export(EXPORT, 2))["throughput"] == pytest.approx(2 / 0.25)


class FakeClient:
    """Gives answers whose statistics say that `num_stored` of ten chunks were stored."""

    def __init__(self, num_stored: int, ttft_seconds: float | None = 0.1) -> None:
        self.statistics = Statistics(160, 10, num_stored, 0, (), 30, 1, 0, 1)
        self.ttft_seconds = ttft_seconds

    def generate(self, question, passages, **options):
        return Answer("a", (5,), (), "length", self.statistics, (), (), self.ttft_seconds, total_seconds=0.2)


@pytest.mark.parametrize(
    ("way", "client", "what"),
    [
        (ttft.Way("warm", 0.0), FakeClient(9), "1 of 10 chunks were not stored"),
        (ttft.Way("cold", 0.0), FakeClient(5), "5 of 10 chunks were stored"),
        (ttft.Way("cold", 0.0), FakeClient(0, None), "the answer has no token"),
    ],
)
def test_a_store_that_is_not_as_it_should_be_ends_the_run(way, client, what):
    server = ttft.Server("fp32", None, client, None, None, None)
    with pytest.raises(AssertionError, match=what):
        server.ask(way, ["a passage"])


def test_callers_never_ask_the_same_twice():
    callers = Callers([f"passage {n}" for n in range(40)], 5, 8, random.Random(0))
    requests = callers.draw(20, 0.0)
    assert len({tuple(request["passages"]["content"]) for request in requests}) == 20
    assert all(request["passages"]["shape"] == [5] for request in requests)
    assert all(request["max_tokens"] == request["min_tokens"] == [8] for request in requests)


def test_memory_that_is_taken_between_two_looks_is_seen_at_the_end(monkeypatch):
    sizes, looked = [1.0], threading.Event()
    monkeypatch.setattr(memory, "memory_mib", lambda server: (looked.set(), sizes[-1])[1])
    with memory.PeakMemory(server=None) as peak:
        assert looked.wait(60)
        sizes.append(2.0)
    assert peak.peak_mib == 2.0


def test_a_case_has_a_slot_for_each_compressed_chunk_and_all_tokens_of_the_others():
    assert Case(1000).num_slots == 1000 + prefill.QUESTION_TOKENS
    assert Case(1000, 16).num_slots == 63 + prefill.QUESTION_TOKENS
    assert Case(1600, 16, 0.1).num_slots == 90 + 10 * 16 + prefill.QUESTION_TOKENS


def test_the_papers_geometry_is_measured_in_process(tmp_path, monkeypatch, capsys):
    tiny = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    monkeypatch.setitem(decoders.SHAPES, "tiny", {**tiny, **heads})
    encoder = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    monkeypatch.setitem(prefill.ENCODERS, "tiny", encoder)
    monkeypatch.setitem(prefill.PEAK_WIDTH, "cpu", 64)
    output = tmp_path / "prefill.json"
    options = ["--context-tokens", "64", "5000", "--chunk-sizes", "16", "--rounds", "1", "--kv-cache-mib", "1"]
    monkeypatch.setattr(sys, "argv", ["prefill", "tiny", *options, "--output", str(output)])
    prefill.main()
    report = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == report
    rows = {(row["context_tokens"], row["chunk_size"], row["expand_fraction"]): row for row in report["rows"]}
    assert len(rows) == 6
    compressed = rows[64, 16, 0.0]
    assert compressed["prompt_slots"] == 4 + prefill.QUESTION_TOKENS
    assert compressed["ttft_not_cached"]["p50_ms"] > compressed["ttft"]["p50_ms"] > 0
    assert {"speedup", "speedup_not_cached", "analytic", "share_of_peak"} <= compressed.keys()
    assert rows[5000, None, None]["left_out"] == "keys and values do not fit"
    assert "ttft" in rows[5000, 16, 0.0], "the compressed one fits"
