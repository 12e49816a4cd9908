"""Indexing that is killed again and again: what it noted as done is in the store.

REFRAG_SOAK_SECONDS=600 python -m pytest tests/graph/test_graph_soak.py -m slow     for longer than by default
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from raw_requests import PATIENCE_SECONDS, SERVER_OPTIONS

from refrag.embedded import EmbeddedServer
from refrag_client import StoreClient

pytestmark = [pytest.mark.server, pytest.mark.slow]

SECONDS = float(os.environ.get("REFRAG_SOAK_SECONDS", "30"))
NUM_LINES, MIN_KILLS = 200_000, 3


def noted_lines(corpus):
    note = corpus.with_name(corpus.name + ".indexed")
    return json.loads(note.read_text())["mark"]["num_lines"] if note.exists() else 0


def wait_until_more_is_noted(corpus, num_lines, process):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while noted_lines(corpus) <= num_lines and process.poll() is None:
        assert time.monotonic() < deadline, f"no line after the {num_lines} that were done before"
        time.sleep(0.05)


def test_no_committed_vector_is_lost(repository, tmp_path):
    rng = random.Random(0)
    corpus = tmp_path / "corpus.jsonl"
    passages = [f"Entry {number} of the log: {rng.random()} and {rng.random()}." for number in range(NUM_LINES)]
    corpus.write_text("".join(json.dumps(passage) + "\n" for passage in passages))
    environment = {"REFRAG_STORE_DISK_PATH": str(tmp_path / "store")}
    with (
        EmbeddedServer(repository, **SERVER_OPTIONS, environment=environment) as server,
        StoreClient(server.grpc_address) as store,
    ):
        command = [sys.executable, "-m", "refrag_client.cli.main", "index", str(corpus), "--url", server.grpc_address]
        end, num_kills, checked = time.monotonic() + SECONDS, 0, 0
        while checked < NUM_LINES and (time.monotonic() < end or num_kills < MIN_KILLS):
            process = subprocess.Popen([*command, "--batch-bytes", "20000"], stderr=subprocess.DEVNULL)
            wait_until_more_is_noted(corpus, checked, process)
            # So that it is killed at any point of its work.
            time.sleep(rng.uniform(0, 2))
            process.kill()
            assert process.wait() in (0, -signal.SIGKILL), "indexing failed"
            num_kills += process.returncode != 0
            done = noted_lines(corpus)
            assert done >= checked, "what was done is to be done again"
            sample = sorted(rng.sample(range(done), min(done, 200)))
            assert (
                store.index([passages[number] for number in (*sample, *range(max(0, done - 50), done))]).num_encoded
                == 0
            )
            checked = done
    assert num_kills >= MIN_KILLS and checked > 0
