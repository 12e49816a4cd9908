"""The benchmark runs every method and tells what it measured; how fast is for `make bench-engine` to say."""

import json
import sys

import pytest

from perf import decoders
from perf import engine as benchmark

TINY = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
METHODS = ["generate, one by one", "generate, padded", "transformers' continuous batching"]


@pytest.fixture(scope="module")
def printed_and_written(tmp_path_factory):
    output = tmp_path_factory.mktemp("results") / "engine.json"
    options = ["--concurrency", "1", "3", "--num-tokens", "4", "--rounds", "1", "--kv-cache-mib", "4"]
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(decoders.SHAPES, "tiny", TINY)
        for name, value in {"SHORTEST_PROMPT": 5, "LONGEST_PROMPT": 20, "LONG_PROMPT": 3000}.items():
            patch.setattr(benchmark, name, value)
        patch.setattr(sys, "argv", ["engine", "tiny", *options, "--output", str(output)])
        patch.setattr("builtins.print", lines.append)
        benchmark.main()
    return lines, json.loads(output.read_text())


def test_every_method_is_measured_at_every_concurrency(printed_and_written):
    _, report = printed_and_written
    rows = report["decoders"]["tiny"]["throughput"]
    assert [row["concurrency"] for row in rows] == [1, 3]
    assert all(list(row["engine_against"]) == METHODS for row in rows)
    assert all(rate > 0 for row in rows for rate in row["tokens_per_second"].values())


def test_the_overhead_is_a_share_of_decoding_steps(printed_and_written):
    _, report = printed_and_written
    for row in report["decoders"]["tiny"]["overhead"]:
        assert 0 < row["overhead"] < 1
        assert row["num_steps"] == 3


def test_a_short_prompt_arrives_at_every_point_of_the_long_one(printed_and_written):
    _, report = printed_and_written
    arrivals = report["decoders"]["tiny"]["ttft"]["beside_long_prefill"]
    assert [row["computed_share"] for row in arrivals] == list(benchmark.ARRIVALS)
    assert all(row["ttft_ms"] >= row["begun_step_ms"] for row in arrivals)


def test_the_last_line_is_the_report(printed_and_written):
    lines, report = printed_and_written
    assert json.loads(lines[-1]) == report
    assert benchmark.markdown_table(report, "tiny") in lines[0]
