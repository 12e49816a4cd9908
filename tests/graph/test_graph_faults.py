"""Model processes killed under load, and a server stopped under load: every caller is told, and the server is back.

Times are printed and recorded, not judged: `pytest -m faults -s`.
"""

import itertools
import os
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from raw_requests import PATIENCE_SECONDS, SERVER_OPTIONS, error_that_ends

import refrag.embedded.run
from refrag.embedded import EmbeddedServer
from refrag.embedded.watch import find_model_processes
from refrag_client import ConnectionLost, RefragClient, ServerUnavailable

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.faults]

MODELS = ["preprocessing", "chunk_encoder", "expansion_policy", "projector", "decoder"]
NUM_ROUNDS, NUM_STREAMS = 2, 8
QUESTION, PASSAGES = "What does Mara Tolen keep?", ["Mara Tolen keeps a parrot."]
# At this temperature no end token is likely: the answer goes on until something ends it.
ENDLESS = {"max_tokens": 4000, "temperature": 50.0}


class Streams:
    """Endless answers, each read by a thread of its own; `failures` are the errors that ended them."""

    def __init__(self, client: RefragClient, pool: ThreadPoolExecutor) -> None:
        self.num_running, self.all_running = itertools.count(1), threading.Event()
        self.failures: list[Future] = [pool.submit(self._read, client, seed) for seed in range(NUM_STREAMS)]
        assert self.all_running.wait(PATIENCE_SECONDS)

    def ends(self) -> list[Exception]:
        return [failure.result(timeout=PATIENCE_SECONDS) for failure in self.failures]

    def _read(self, client: RefragClient, seed: int) -> Exception:
        stream = client.stream(QUESTION, PASSAGES, seed=seed, **ENDLESS)
        next(stream)
        if next(self.num_running) == NUM_STREAMS:
            self.all_running.set()
        return error_that_ends(stream)


def kill_process_of(server: EmbeddedServer, model: str) -> None:
    processes = find_model_processes(server.process_id)
    os.kill(next(number for number, name in processes.items() if name.startswith(f"{model}_")), signal.SIGKILL)


def ask_at_once(client: RefragClient, contexts) -> list[tuple[int, ...]]:
    """Return the greedy answers to the contexts' first questions, all asked at the same time."""
    with ThreadPoolExecutor(len(contexts)) as pool:
        return list(pool.map(lambda context: ask(client, context), contexts))


def ask(client: RefragClient, context) -> tuple[int, ...]:
    return client.generate(context.questions[0].text, context.passages, max_tokens=16).token_ids


def test_killed_model_processes_end_every_stream_and_are_replaced(repository, heldout, record_property):
    with (
        EmbeddedServer(repository, **SERVER_OPTIONS, max_restarts=NUM_ROUNDS * len(MODELS)) as server,
        RefragClient(server.grpc_address) as client,
        ThreadPoolExecutor(NUM_STREAMS) as pool,
    ):
        contexts = heldout[:NUM_STREAMS]
        alone = [ask(client, context) for context in contexts]
        for model in MODELS * NUM_ROUNDS:
            streams = Streams(client, pool)
            before = server.process_id
            killed_at = time.monotonic()
            kill_process_of(server, model)
            ends = streams.ends()
            told = time.monotonic() - killed_at
            assert [type(end) for end in ends] == [ConnectionLost] * NUM_STREAMS
            assert all(end.num_tokens > 0 for end in ends)
            client.wait_until_ready(timeout_seconds=PATIENCE_SECONDS)
            together = ask_at_once(client, contexts)
            back = time.monotonic() - killed_at
            assert server.process_id != before
            assert together == alone
            record_property(f"{model}_seconds", (round(told, 2), round(back, 2)))
            print(f"{model}: callers told after {told:.2f} s, eight answers after {back:.2f} s")


def test_a_stop_tells_every_caller_and_counts_what_it_cuts(repository, monkeypatch):
    # Half of the drain: a busy machine is slow to tell, and no answer may come to its end before.
    monkeypatch.setattr(refrag.embedded.run, "_LAST_WORD_SECONDS", 10.0)
    with (
        EmbeddedServer(repository, **SERVER_OPTIONS, drain_timeout_seconds=20) as server,
        RefragClient(server.grpc_address) as client,
        ThreadPoolExecutor(NUM_STREAMS + 1) as pool,
    ):
        streams = Streams(client, pool)
        stopped = pool.submit(server.stop)
        late = ask_until_refused(client)
        ends = streams.ends()
        assert stopped.result(timeout=PATIENCE_SECONDS) == NUM_STREAMS
    assert {type(end) for end in ends} == {ServerUnavailable}
    assert all("has cut this answer" in str(end) for end in ends)
    assert "is stopping" in str(late)
    assert late.is_retryable


def ask_until_refused(client: RefragClient) -> ServerUnavailable:
    """Return the refusal of the first request that the stopping server refuses."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            client.generate(QUESTION, PASSAGES, max_tokens=1)
        except ServerUnavailable as refusal:
            return refusal
    raise AssertionError("the stopping server refuses nobody")
