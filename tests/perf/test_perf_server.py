"""The tools against a real server, for as short as they can be: they end with a report, and a condition that fails ends
them.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from perf import conversation, document, int8, load, peers, policies, scale, shadowing, ttft
from perf.deployment import deploy
from refrag.config import RefragConfig

pytestmark = [pytest.mark.server, pytest.mark.slow]


def run(module, output, *options):
    command = [sys.executable, "-m", module.__name__, *map(str, options), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(output.read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == report
    assert module.markdown(report) in done.stdout
    return report


def test_first_tokens_are_measured_with_their_stages(tmp_path):
    options = ["--context-tokens", 400, "--encoders", "fp32", "int8", "--rounds", 1, "--stage-requests", 1]
    report = run(ttft, tmp_path / "ttft.json", *options)
    integers = [row for row in report["rows"] if row["encoder"] == "int8"]
    assert [(row["store"], row["expand_fraction"]) for row in integers] == [("cold", 0.0), ("cold", 0.1)]
    rows = {(row["store"], row["expand_fraction"]): row for row in report["rows"] if row["encoder"] == "fp32"}
    assert list(rows) == [("plain", 1.0), *((store, p) for store in ttft.STORES for p in (0.0, 0.1))]
    plain, warm = rows["plain", 1.0], rows["warm", 0.0]
    assert 400 <= plain["prompt_slots"] < 450
    assert warm["prompt_slots"] < plain["prompt_slots"] / 6
    assert warm["against_bare"] > 0
    assert all(row["ttft"]["n"] == 1 and row["stages_ms"]["decoder"] > 0 for row in rows.values())


def test_policies_are_measured_against_none_with_the_time_that_sensing_takes(tmp_path):
    options = ["--checkpoint", "checkpoints/world", "--context-tokens", 400, "--rounds", 1]
    rows = {row["policy"]: row for row in run(policies, tmp_path / "policies.json", *options)["rows"]}
    assert list(rows) == ["none", "random", "similarity", "neighbourhood", "learned", "attention"]
    assert rows["none"]["over_none"] == 1
    none, *others = [row["prompt_slots"] for row in rows.values()]
    # Each policy asks about passages of its own, whose last chunks are not of the same length.
    assert none < min(others) and max(others) - min(others) < 16
    assert 0 < rows["attention"]["sensing_ms"] < rows["attention"]["ttft"]["p50_ms"]
    assert [policy for policy, row in rows.items() if "sensing_ms" in row] == ["attention"]


def test_shadows_are_counted_under_the_load_that_has_them_alone(tmp_path):
    options = ["--checkpoint", "checkpoints/world", "--callers", 2, "--requests", 2, "--turns", 1]
    options += ["--passages", 2, "--num-tokens", 4, "--shadow-fraction", 1]
    rows = {row["load"]: row for row in run(shadowing, tmp_path / "shadowing.json", *options)["rows"]}
    shadows = {load: row["num_compared"] + row["num_skipped"] for load, row in rows.items()}
    assert shadows == {"none": 0, "shadowed": 4, "more load": 0}
    assert rows["shadowed"]["num_compared"] > 0
    assert all(row["requests_per_second"] > 0 and row["ttft"]["n"] == 4 for row in rows.values())


@pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="needs a CPU with AVX-512 VNNI")
def test_eight_bits_are_measured_beside_floats(tmp_path):
    options = ["--checkpoint", "checkpoints/world", "--window", 64, "--num-windows", 2, "--rounds", 1]
    report = run(int8, tmp_path / "int8.json", *options, "--slots", 64, "--callers", 2, "--num-tokens", 8)
    assert 0.9 < report["text"]["agreement"] <= 1
    assert report["decoding"][0]["tokens_per_second"].keys() == {"none", "int8"}


def test_load_is_measured_by_perf_analyzer(tmp_path):
    options = ["--context-tokens", 300, "--concurrency", 2, "--request-rates", 5, "--requests", 3, "--num-tokens", 4]
    report = run(load, tmp_path / "load.json", *options)
    assert [row["load"] for row in report["rows"]] == ["2 at a time", "5/s"]
    for row in report["rows"]:
        for way in ("compressed", "plain"):
            assert row[way]["throughput"] > 0
            assert row[way]["total"]["p50_ms"] > row[way]["ttft"]["p50_ms"] > 0
            assert row[way]["models_ms"]["decoder"]["compute"] > 0
    assert report["rows"][0]["plain"]["ttft"]["n"] == 6


@pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="needs a CPU with AVX-512 VNNI")
def test_decoders_take_turns_under_load(tmp_path):
    options = ["--context-tokens", 300, "--concurrency", 2, "--requests", 1, "--num-tokens", 4]
    report = run(load, tmp_path / "load.json", *options, "--decoders", "torch", "int8")
    assert [row["load"] for row in report["rows"]] == ["2 at a time", "2 at a time, int8"]
    assert [row["decoder"] for row in report["rows"]] == ["torch", "int8"]
    assert all(row["speedup"] > 0 for row in report["rows"])


def test_peers_give_the_same_tokens(tmp_path):
    report = run(peers, tmp_path / "peers.json", "--context-tokens", 300, "--rounds", 1, "--num-tokens", 4)
    [row] = report["rows"]
    assert row["tokens_compared"]
    assert set(row["ttft_against_generate"]) == {"plain", "compressed"}


@pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="needs a CPU with AVX-512 VNNI")
def test_peers_ask_several_at_once_by_every_decoder(tmp_path):
    options = ["--context-tokens", 300, "--rounds", 1, "--num-tokens", 4, "--callers", 2, "--caller-tokens", 200]
    report = run(peers, tmp_path / "peers.json", *options, "--decoders", "torch", "int8")
    rates = report["callers"][0]["tokens_per_second"]
    assert list(rates) == ["compressed", "plain", "compressed, int8", "plain, int8"]
    assert all(rate > 0 for rate in rates.values())
    for name, (low, high) in report["callers"][0]["tokens_per_second_range"].items():
        assert low <= rates[name] <= high


def test_a_document_fills_the_window(tmp_path):
    report = run(document, tmp_path / "document.json", "--window", 256, "--max-tokens", 8)
    assert 0.5 * 256 < report["prompt_slots"] <= 256 - 8
    assert report["context_tokens"] > 8 * report["prompt_slots"]
    assert report["peak_mib"] > report["idle_mib"] > 0
    assert report["answer_tokens"] > 0 and report["passages"] > 1


def test_a_conversation_grows_in_every_way_and_none_leaves_a_turn_out(tmp_path):
    options = ["--checkpoint", "checkpoints/world", "--turns", 10, 30, "--passage-tokens", 50, "--rounds", 1]
    rows = run(conversation, tmp_path / "conversation.json", *options)["rows"]
    found = {(row["scenario"], row["turns"], row["way"]): row for row in rows}
    assert len(found) == 12
    for scenario, num_answers in (("in a row", 10), ("new passages", 1)):
        plain, compressed = ([found[scenario, turns, way] for turns in (10, 30)] for way in ("plain", "p=0"))
        assert plain[1]["prompt_slots"] - plain[0]["prompt_slots"] > 400
        assert compressed[1]["prompt_slots"] - compressed[0]["prompt_slots"] < 80
        assert plain[0]["growth_over_plain"] is None and plain[1]["growth_over_plain"] == 1
        assert all(row["ttft"]["n"] == num_answers for row in plain + compressed)
    assert found["in a row", 30, "p=0.1"]["expanded_chunks"] > 0 == compressed[1]["expanded_chunks"]


def test_growth_is_measured_over_requests(tmp_path):
    options = ["--passages", 1, 4, "--callers", 2, "--requests-per-caller", 3, "--requests", 20, "--rounds", 1]
    report = run(scale, tmp_path / "scale.json", *options)
    assert [row["passages"] for row in report["passages"]] == [1, 4]
    assert report["requests"]["requests"] == 20
    assert report["requests"]["after_mib"] > report["idle_mib"] / 2 > 100


def test_a_deployment_is_a_copy_with_its_own_window_and_chunk_size(tmp_path):
    repository = deploy(Path("checkpoints/world"), tmp_path, 9000, chunk_size=32)
    for model in ("preprocessing", "decoder"):
        config = RefragConfig.load(repository / model / "1" / "checkpoint")
        assert (config.max_prompt_slots, config.chunk_size) == (9000, 32)
    deployed = json.loads((repository / "decoder/1/checkpoint/decoder/config.json").read_text())
    assert deployed["max_position_embeddings"] == 9000
