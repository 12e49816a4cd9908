"""A server that fails, or loses a model's process, is told of, ends at once, and serves again."""

import http.client
import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from embedded_helpers import (
    DOUBLER,
    PATIENCE_SECONDS,
    VECTOR_CONFIG,
    is_group_alive,
    shared_memory_of,
    wait_until,
    write_model,
)

from refrag.embedded import EmbeddedServer
from refrag.embedded.leftovers import remove_leftovers, take_lock
from refrag.embedded.run import is_ready, status_of
from refrag.embedded.watch import Watch, find_model_processes

pytestmark = pytest.mark.server
ANY_PORTS = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}


def ask(address: str, path: str, body: dict | None = None, headers: dict | None = None) -> tuple[int, str]:
    """Return status and body of a POST, or of a GET if there is no body to send."""
    with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
        method, content = ("GET", None) if body is None else ("POST", json.dumps(body))
        connection.request(method, path, content, headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode()


def double(server: EmbeddedServer) -> list[float]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.0, 2.0]}
    status, body = ask(server.http_address, "/v2/models/doubler/infer", {"inputs": [tensor]})
    assert status == 200, body
    return json.loads(body)["outputs"][0]["data"]


def kill_model(server: EmbeddedServer, model: str) -> None:
    processes = find_model_processes(server.process_id)
    os.kill(next(number for number, name in processes.items() if name.startswith(model)), signal.SIGKILL)


def serves_again(server: EmbeddedServer, before: int) -> bool:
    return server.process_id != before and is_ready(server.http_address)


def test_a_model_process_that_dies_is_told_of_and_replaced(tiny_repository, caplog):
    with caplog.at_level(logging.WARNING), EmbeddedServer(tiny_repository, **ANY_PORTS) as server:
        address, group = server.http_address, server.process_id
        kill_model(server, "doubler")
        assert wait_until(lambda: serves_again(server, group))
        assert server.http_address == address
        assert double(server) == [2.0, 4.0]
        assert wait_until(lambda: "answers again" in caplog.text)
    assert "model instance doubler_0_0" in caplog.text
    assert not is_group_alive(group)


def test_a_model_process_that_crashes_tells_what_it_was_doing(tmp_path, caplog):
    crasher = DOUBLER.replace("values * 2", "ctypes.string_at(0)")
    code = f"import ctypes\nimport refrag.serving.triton\n{crasher}"
    write_model(tmp_path, "doubler", VECTOR_CONFIG.format(width=-1) + 'backend: "python"', code)
    with caplog.at_level(logging.WARNING), EmbeddedServer(tmp_path, **ANY_PORTS) as server:
        group = server.process_id
        with pytest.raises((http.client.HTTPException, OSError)):
            double(server)
        assert wait_until(lambda: serves_again(server, group))
        assert wait_until(lambda: "answers again" in caplog.text)
    crash = next(line for line in caplog.text.splitlines() if "Fatal Python error" in line)
    assert "Segmentation fault in " in crash
    assert f'"{tmp_path}/doubler/1/model.py", line 13 in double' in crash


def test_a_server_that_is_crashed_from_outside_serves_again(tiny_repository, caplog):
    huge = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2**40], "data": [1.0]}]}
    with EmbeddedServer(tiny_repository, **ANY_PORTS) as server:
        group = server.process_id
        with pytest.raises((http.client.HTTPException, OSError)):
            ask(server.http_address, "/v2/models/doubler/infer", huge)
        assert wait_until(lambda: serves_again(server, group))
        assert double(server) == [2.0, 4.0]
    assert "the server ended by itself" in caplog.text
    assert "Signal (6) received." in caplog.text


def test_a_server_that_keeps_failing_gives_up(tiny_repository, caplog):
    with caplog.at_level(logging.WARNING), EmbeddedServer(tiny_repository, **ANY_PORTS, max_restarts=1) as server:
        kill_model(server, "doubler")
        assert wait_until(lambda: "answers again" in caplog.text)
        second = server.process_id
        kill_model(server, "doubler")
        failure = server.wait()
        server.stop()
    assert "has failed 2 times within ten minutes and gives up" in failure
    assert not is_group_alive(second)
    server.log_path.unlink()


def test_serve_reports_a_failure_and_exits_with_1_if_told_to(tiny_repository):
    arguments = [f"--model-repository={tiny_repository}", "--http-port=0", "--grpc-port=0", "--metrics-port=0"]
    command = [Path(sys.executable).with_name("refrag"), "serve", *arguments, "--on-failure=exit"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = [process.stdout.readline() for _ in range(5)]
            (server,) = children_of(process.pid)
            os.kill(next(iter(find_model_processes(server))), signal.SIGKILL)
            _, errors = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
    assert process.returncode == 1
    assert "model instance doubler_0_0" in errors
    Path(lines[3].split()[1]).unlink()


def children_of(process_id: int) -> list[int]:
    found = [path.read_text().split() for path in Path(f"/proc/{process_id}/task").glob("*/children")]
    return [int(number) for numbers in found for number in numbers]


def test_stopping_while_the_server_starts_again_leaves_nothing(tiny_repository):
    # Other tests' servers may still run in this process.
    before = set(shared_memory_of(os.getpid()))
    with EmbeddedServer(tiny_repository, **ANY_PORTS) as server:
        first = server.process_id
        kill_model(server, "doubler")
        assert wait_until(lambda: server.process_id != first)
    assert server.process_id is None
    assert wait_until(lambda: set(shared_memory_of(os.getpid())) == before)


def test_an_unloaded_model_is_no_failure(tiny_repository):
    write_model(tiny_repository, "other", VECTOR_CONFIG.format(width=-1) + 'backend: "python"', DOUBLER)
    explicit = ("--model-control-mode=explicit", "--load-model=*")
    options = {"server_arguments": explicit, "admin_key": "let-me-in"}
    with EmbeddedServer(tiny_repository, **ANY_PORTS, **options) as server:
        group = server.process_id
        status, _ = ask(server.http_address, "/v2/repository/models/other/unload", {}, {"admin-key": "let-me-in"})
        assert status == 200
        assert wait_until(lambda: len(find_model_processes(group)) == 1)
        assert double(server) == [2.0, 4.0]
        assert server.process_id == group


@pytest.mark.parametrize(
    "path",
    ["/v2/systemsharedmemory/status", "/v2/cudasharedmemory/status", "/v2/logging", "/v2/trace/setting"],
)
def test_protocols_that_no_answer_needs_are_closed(server, path):
    assert status_of(server.http_address, path) == 403
    assert ask(server.http_address, "/v2/repository/index", {})[0] == 403
    assert status_of(server.http_address, "/v2/models/doubler/stats") == 200


def test_a_server_that_ended_before_the_watch_began_is_a_failure():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    watch = Watch(ended.pid, lambda model: True)
    assert watch.wait() == "the server ended by itself"
    watch.close()


def test_a_probe_that_fails_twice_in_a_row_is_a_failure():
    answers = iter([True, False, True, False, False])

    def probe() -> None:
        if not next(answers):
            raise RuntimeError("no answer")

    watch = Watch(os.getpid(), lambda model: True, probe, probe_seconds=0.001)
    assert watch.wait() == "2 probes in a row were not answered; the last one: no answer"
    watch.close()


def test_what_killed_servers_left_is_removed_and_what_runs_is_kept(tmp_path):
    prefixes = [f"refrag-{os.getpid()}-{name}-" for name in ("dead", "alive")]
    folders = [tmp_path / f"refrag-server-{name}" for name in ("dead", "alive")]
    locks = []
    for prefix, folder in zip(prefixes, folders, strict=True):
        folder.mkdir()
        locks.append(take_lock(prefix, folder))
        Path("/dev/shm", f"{prefix}region").touch()
    os.close(locks[0])
    remove_leftovers()
    left = {path.name for path in shared_memory_of(os.getpid())}
    assert {f"{prefixes[1]}region", f"{prefixes[1]}lock"} <= left
    assert not any(name.startswith(prefixes[0]) for name in left)
    assert [folder.exists() for folder in folders] == [False, True]
    os.close(locks[1])
    remove_leftovers()
