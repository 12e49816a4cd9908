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
from raw_requests import error_that_ends

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
        assert self.all_running.wait(120)

    def ends(self) -> list[Exception]:
        return [failure.result(timeout=120) for failure in self.failures]

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
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with (
        EmbeddedServer(repository, **ports, max_restarts=NUM_ROUNDS * len(MODELS)) as server,
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
            client.wait_until_ready(timeout_seconds=120)
            together = ask_at_once(client, contexts)
            back = time.monotonic() - killed_at
            assert server.process_id != before
            assert together == alone
            record_property(f"{model}_seconds", (round(told, 2), round(back, 2)))
            print(f"{model}: callers told after {told:.2f} s, eight answers after {back:.2f} s")


def test_a_stop_tells_every_caller_and_counts_what_it_cuts(repository):
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with (
        EmbeddedServer(repository, **ports, drain_timeout_seconds=4) as server,
        RefragClient(server.grpc_address) as client,
        ThreadPoolExecutor(NUM_STREAMS + 1) as pool,
    ):
        streams = Streams(client, pool)
        stopped = pool.submit(server.stop)
        late = ask_until_refused(client)
        ends = streams.ends()
        assert stopped.result(timeout=60) == NUM_STREAMS
    assert {type(end) for end in ends} == {ServerUnavailable}
    assert all("has cut this answer" in str(end) for end in ends)
    assert "is stopping" in str(late)
    assert late.is_retryable


def ask_until_refused(client: RefragClient) -> ServerUnavailable:
    """Return the refusal of the first request that the stopping server refuses."""
    while True:
        try:
            client.generate(QUESTION, PASSAGES, max_tokens=1)
        except ServerUnavailable as refusal:
            return refusal
