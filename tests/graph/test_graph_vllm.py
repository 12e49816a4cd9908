"""vLLM alone has an engine in other processes that may die, and takes decoders that `torch` refuses."""

import os
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from raw_requests import PATIENCE_SECONDS, error_that_ends
from served_metrics import wait_for
from vllm_environment import READY_SECONDS, needs_vllm, use_vllm

from refrag.embedded import EmbeddedServer
from refrag.embedded.probe import ProbeFailed, ask_server
from refrag.errors import SetupError
from refrag.export.repository import export_repository
from refrag_client import RefragClient, ServerUnavailable

pytestmark = [pytest.mark.server, pytest.mark.slow, needs_vllm]

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "world"
QUESTION, PASSAGES = "What does Mara Tolen keep?", ["Mara Tolen keeps a parrot."]
ENDLESS = {"max_tokens": 3000, "min_tokens": 3000}
PORTS = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}


@pytest.fixture(scope="module")
def vllm_repository(tmp_path_factory):
    path = tmp_path_factory.mktemp("repository")
    export_repository(CHECKPOINT, path)
    use_vllm(path)
    return path


def engine_processes(server):
    """Return the ids of vLLM's processes among those of the server's group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            group = int((folder / "stat").read_text().rpartition(")")[2].split()[2])
            if group == server.process_id and "EngineCore" in (folder / "cmdline").read_text():
                found.append(int(folder.name))
        except (OSError, IndexError):
            continue
    return found


def is_running(process_id):
    """Return whether the process computes; one that has ended may wait for its parent to ask."""
    try:
        return (Path("/proc") / str(process_id) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_dead_engine_ends_every_answer_is_told_and_is_replaced(vllm_repository):
    with (
        EmbeddedServer(
            vllm_repository, **PORTS, probe_seconds=2, ready_timeout_seconds=READY_SECONDS, max_restarts=1
        ) as server,
        RefragClient(server.grpc_address, timeout_seconds=PATIENCE_SECONDS) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        before, first = client.generate(QUESTION, PASSAGES, max_tokens=8).token_ids, server.process_id
        started = [threading.Event() for _ in range(4)]
        ends = [pool.submit(read_to_the_end, client, seed, started[seed]) for seed in range(4)]
        assert all(event.wait(PATIENCE_SECONDS) for event in started)
        for process_id in engine_processes(server):
            os.kill(process_id, signal.SIGKILL)
        assert {type(end.result(PATIENCE_SECONDS)) for end in ends} == {ServerUnavailable}
        with pytest.raises(ProbeFailed, match=r"died|cannot be asked"):
            ask_server(server.http_address)
        wait_for(lambda: server.process_id not in (first, None))
        client.wait_until_ready(timeout_seconds=READY_SECONDS)
        assert client.generate(QUESTION, PASSAGES, max_tokens=8).token_ids == before


def test_a_stop_of_the_server_tells_every_caller_and_leaves_no_process(vllm_repository):
    with (
        EmbeddedServer(
            vllm_repository, **PORTS, probe_seconds=0, drain_timeout_seconds=4, ready_timeout_seconds=READY_SECONDS
        ) as server,
        RefragClient(server.grpc_address, timeout_seconds=PATIENCE_SECONDS) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        started = [threading.Event() for _ in range(2)]
        ends = [pool.submit(read_to_the_end, client, seed, started[seed]) for seed in range(2)]
        assert all(event.wait(PATIENCE_SECONDS) for event in started)
        processes = engine_processes(server)
        assert processes
        assert server.stop() == 2
        told = [end.result(PATIENCE_SECONDS) for end in ends]
    assert all(isinstance(error, ServerUnavailable) and "has cut this answer" in str(error) for error in told)
    assert not any(map(is_running, processes))


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ({"engine_arguments": "tensor_paralel_size=2"}, "does not have"),
        ({"engine_arguments": "tensor_parallel_size=3"}, "vLLM cannot serve this decoder with these arguments"),
    ],
)
def test_an_engine_that_cannot_start_stops_the_start_and_says_why(vllm_repository, tmp_path, parameter, message):
    copy = shutil.copytree(vllm_repository, tmp_path / "repository")
    use_vllm(copy, **parameter)
    with (
        pytest.raises(SetupError, match=message),
        EmbeddedServer(copy, **PORTS, ready_timeout_seconds=READY_SECONDS),
    ):
        pass


def read_to_the_end(client, seed, started):
    stream = client.stream(QUESTION, PASSAGES, seed=seed, **ENDLESS)
    next(stream)
    started.set()
    return error_that_ends(stream)
