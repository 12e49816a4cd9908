"""NVIDIA's AIPerf against the real endpoint, streaming and not; `make aiperf` builds its environment."""

import json
import os
import subprocess

import pytest
from documentation import ROOT
from raw_requests import PATIENCE_SECONDS
from test_graph_cancel import PASSAGES

AIPERF = ROOT / "build/aiperf/bin/aiperf"
pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.skipif(not AIPERF.exists(), reason="AIPerf is not installed; `make aiperf` does that"),
]

NUM_REQUESTS, NUM_TOKENS = 8, 6


@pytest.mark.parametrize("options", [["--streaming"], []], ids=["streaming", "whole"])
def test_aiperf_measures_the_endpoint_over_documents(base_url, tmp_path, options):
    body = {"documents": PASSAGES, "refrag": {"expand_fraction": 0.5}, "ignore_eos": True}
    asked = {
        "model": "refrag",
        "url": base_url.removesuffix("/v1"),
        "endpoint-type": "chat",
        "concurrency": 2,
        "request-count": NUM_REQUESTS,
        "tokenizer": ROOT / "checkpoints/world/decoder",
        "synthetic-input-tokens-mean": 16,
        "output-tokens-mean": NUM_TOKENS,
        "extra-inputs": json.dumps(body),
        "artifact-dir": tmp_path,
        "ui": "simple",
    }
    command = [AIPERF, "profile", *options, *(f"--{name}={value}" for name, value in asked.items())]
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=4 * PATIENCE_SECONDS, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = tmp_path.rglob("profile_export_aiperf.json")
    told = json.loads(path.read_text())
    assert told["error_summary"] == []
    assert told["request_count"]["avg"] == NUM_REQUESTS
    assert told["usage_completion_tokens"]["avg"] == NUM_TOKENS
    assert ("time_to_first_token" in told) == bool(options)
