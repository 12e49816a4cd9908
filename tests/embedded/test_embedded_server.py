"""The real server over a tiny repository: it serves, it explains failures, and it leaves nothing behind."""

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from embedded_helpers import (
    DOUBLER,
    PATIENCE_SECONDS,
    VECTOR_CONFIG,
    affine,
    is_group_alive,
    shared_memory_of,
    wait_until,
    write_model,
)
from tritonclient.utils import InferenceServerException

import refrag.embedded.run
from refrag.embedded import EmbeddedServer
from refrag.embedded.leftovers import remove_leftovers
from refrag.embedded.log import find_loading_models
from refrag.embedded.run import answers, is_ready
from refrag.errors import SetupError

pytestmark = pytest.mark.server
REFRAG = Path(sys.executable).with_name("refrag")
ANY_PORTS = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}


@pytest.fixture
def client(server):
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        yield client


def as_input(values: np.ndarray) -> list[grpcclient.InferInput]:
    tensor = grpcclient.InferInput("x", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values)
    return [tensor]


def infer(client, model: str, values: list) -> np.ndarray:
    return client.infer(model, as_input(np.array(values, np.float32))).as_numpy("y")


def infer_at_once(client, model: str, batches: list[np.ndarray]) -> list[Future]:
    """Send all before waiting for any, so that the server can batch them."""
    futures: list[Future] = [Future() for _ in batches]

    def settle(future: Future, result, error) -> None:
        future.set_exception(error) if error else future.set_result(result.as_numpy("y"))

    for future, batch in zip(futures, batches, strict=True):
        client.async_infer(model, as_input(batch), lambda result, error, future=future: settle(future, result, error))
    return futures


def count_executions(client, model: str) -> int:
    return client.get_inference_statistics(model).model_stats[0].execution_count


def test_a_server_without_metrics_is_not_waited_for_in_vain(tiny_repository):
    with EmbeddedServer(tiny_repository, **ANY_PORTS, server_arguments=("--allow-metrics=false",)) as server:
        assert is_ready(server.http_address)
        assert not answers(server.metrics_address, "/metrics")


def test_a_started_server_is_ready_and_exports_metrics(server):
    assert is_ready(server.http_address)
    connection = http.client.HTTPConnection(server.metrics_address, timeout=5)
    connection.request("GET", "/metrics")
    assert b"nv_inference_request_success" in connection.getresponse().read()
    connection.close()


def test_a_python_model_answers(client):
    np.testing.assert_array_equal(infer(client, "doubler", [1, 2]), [2, 4])


def test_an_onnx_model_without_batching_answers(client):
    np.testing.assert_array_equal(infer(client, "unbatched", [1, 1, 1]), [4, 5, 6])


def test_a_config_is_completed_from_the_graph(client):
    config = client.get_model_config("completed", as_json=True)["config"]
    assert config["max_batch_size"] == 4
    assert [(tensor["name"], tensor["dims"]) for tensor in config["input"]] == [("x", ["3"])]
    np.testing.assert_array_equal(infer(client, "completed", [[0, 0, 0]]), [[1, 2, 3]])


def test_requests_batched_together_answer_as_they_do_alone(client):
    batches = [np.full((num_rows, 3), num_rows, np.float32) for num_rows in (1, 2, 1, 3)]
    before = count_executions(client, "affine")
    together = [future.result(timeout=PATIENCE_SECONDS) for future in infer_at_once(client, "affine", batches)]
    assert count_executions(client, "affine") - before < len(batches)
    for batch, answer in zip(batches, together, strict=True):
        np.testing.assert_array_equal(answer, affine(batch))
        np.testing.assert_array_equal(answer, infer(client, "affine", batch))


def test_a_request_the_graph_cannot_take_fails_alone(client):
    good, bad = np.ones((1, 3), np.float32), np.ones((1, 4), np.float32)
    first, failed, last = infer_at_once(client, "affine", [good, bad, good])
    np.testing.assert_array_equal(first.result(timeout=PATIENCE_SECONDS), affine(good))
    np.testing.assert_array_equal(last.result(timeout=PATIENCE_SECONDS), affine(good))
    with pytest.raises(InferenceServerException, match=r"broadcast|shape|dimension"):
        failed.result(timeout=PATIENCE_SECONDS)


@pytest.mark.parametrize(
    ("config", "code", "message"),
    [
        (VECTOR_CONFIG.format(width=3) + 'backend: "python"', "raise OSError('no weights here')", "no weights here"),
        (VECTOR_CONFIG.format(width=3) + 'backend: "onnxruntime"', None, "model.onnx does not exist"),
        ('bakend: "python"', None, 'no field named "bakend"'),
    ],
)
def test_a_model_that_does_not_load_is_named_with_its_own_error(tiny_repository, config, code, message):
    write_model(tiny_repository, "broken", config, code)
    server = EmbeddedServer(tiny_repository, **ANY_PORTS)
    with pytest.raises(SetupError) as caught:
        server.start()
    assert message in str(caught.value)
    assert "broken" in str(caught.value)
    assert len(str(caught.value).splitlines()) < 15
    assert server.log_path.exists()
    server.log_path.unlink()


def test_a_server_that_takes_too_long_says_which_model_it_waited_for(tiny_repository, monkeypatch):
    slow = f"import threading\nthreading.Event().wait({PATIENCE_SECONDS})\n" + DOUBLER
    write_model(tiny_repository, "slow", VECTOR_CONFIG.format(width=3) + 'backend: "python"', slow)
    server = EmbeddedServer(tiny_repository, **ANY_PORTS, ready_timeout_seconds=PATIENCE_SECONDS)

    def clock():
        """Return the time, which is up as soon as the model is being loaded."""
        is_loading = "slow" in find_loading_models(server.log_path.read_text())
        return time.monotonic() + (PATIENCE_SECONDS if is_loading else 0)

    monkeypatch.setattr(refrag.embedded.run, "time", SimpleNamespace(monotonic=clock))
    with pytest.raises(SetupError, match=r"not ready within 600 s \(models still loading: .*slow"):
        server.start()
    assert server.process_id is None
    server.log_path.unlink()


def test_stopping_leaves_no_process_no_shared_memory_and_no_file(tiny_repository):
    before = set(shared_memory_of(os.getpid()))
    with EmbeddedServer(tiny_repository, **ANY_PORTS) as server:
        group = server.process_id
        assert is_group_alive(group)
        assert set(shared_memory_of(os.getpid())) - before
    assert wait_until(lambda: not is_group_alive(group))
    assert set(shared_memory_of(os.getpid())) == before
    assert not server.log_path.exists()


def test_a_server_that_is_killed_leaves_nothing_behind_either(tiny_repository):
    before = set(shared_memory_of(os.getpid()))
    with EmbeddedServer(tiny_repository, **ANY_PORTS, on_failure="exit") as server:
        group = server.process_id
        os.kill(group, signal.SIGKILL)
        assert server.wait().startswith("the server ended by itself")
    assert wait_until(lambda: not is_group_alive(group))
    assert set(shared_memory_of(os.getpid())) == before
    server.log_path.unlink()


def test_stopping_is_bounded_while_a_request_runs(tiny_repository):
    stuck = DOUBLER.replace("return [self", "__import__('threading').Event().wait(300); return [self")
    write_model(tiny_repository, "stuck", VECTOR_CONFIG.format(width=-1) + 'backend: "python"', stuck)
    server = EmbeddedServer(tiny_repository, **ANY_PORTS, drain_timeout_seconds=1).start()
    group = server.process_id
    try:
        with grpcclient.InferenceServerClient(server.grpc_address) as client:
            (future,) = infer_at_once(client, "stuck", [np.ones(1, np.float32)])
            started_at = time.monotonic()
            server.stop()
            assert time.monotonic() - started_at < 15
            with pytest.raises(InferenceServerException):
                future.result(timeout=PATIENCE_SECONDS)
    finally:
        server.stop()
    assert wait_until(lambda: not is_group_alive(group))
    assert not server.log_path.exists()


def test_the_server_outlives_the_thread_that_started_it(tiny_repository):
    server = EmbeddedServer(tiny_repository, **ANY_PORTS)
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    try:
        assert not wait_until(lambda: not is_ready(server.http_address), timeout_seconds=1)
    finally:
        server.stop()


def test_the_server_dies_with_a_parent_that_is_killed(tiny_repository, tmp_path):
    program = (
        "import sys; from refrag.embedded import EmbeddedServer\n"
        "server = EmbeddedServer(sys.argv[1], http_port=0, grpc_port=0, metrics_port=0).start()\n"
        "print(server.process_id, flush=True); server.wait()"
    )
    command = [sys.executable, "-c", program, str(tiny_repository)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        try:
            group = int(parent.stdout.readline())
            assert shared_memory_of(parent.pid)
        finally:
            parent.kill()
    assert wait_until(lambda: not is_group_alive(group))
    # Only a lock is left, by which the next server finds the rest.
    assert [path.name.rpartition("-")[2] for path in shared_memory_of(parent.pid)] == ["lock"]
    remove_leftovers()
    assert not shared_memory_of(parent.pid)
    assert not [path for path in tmp_path.glob("refrag-server-*") if path.is_dir()]


def test_a_named_config_replaces_the_default_one(tiny_repository):
    configs = tiny_repository / "doubler" / "configs"
    configs.mkdir()
    (configs / "wide.pbtxt").write_text(VECTOR_CONFIG.format(width=7) + 'backend: "python"')
    with (
        EmbeddedServer(tiny_repository, **ANY_PORTS, model_config_name="wide") as server,
        grpcclient.InferenceServerClient(server.grpc_address) as client,
    ):
        assert list(client.get_model_metadata("doubler").inputs[0].shape) == [7]


def test_serve_prints_its_addresses_and_ends_in_order_on_sigterm(tiny_repository):
    arguments = [f"--model-repository={tiny_repository}", "--http-port=0", "--grpc-port=0", "--metrics-port=0"]
    command = [REFRAG, "serve", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(5)]
        process.send_signal(signal.SIGTERM)
    assert [line.split()[0] for line in lines] == ["http", "grpc", "metrics", "log", "ready"]
    assert process.returncode == 0
    assert not shared_memory_of(process.pid)


def test_two_servers_run_side_by_side(server, tiny_repository):
    with ThreadPoolExecutor() as pool, EmbeddedServer(tiny_repository, **ANY_PORTS) as other:
        assert all(pool.map(is_ready, [server.http_address, other.http_address]))
    assert is_ready(server.http_address)


def test_check_reports_each_item_and_exits_with_the_verdict(tiny_repository, tmp_path):
    command = [REFRAG, "check", "--http-port=0", "--grpc-port=0", "--metrics-port=0"]
    healthy = subprocess.run([*command, f"--model-repository={tiny_repository}"], capture_output=True, text=True)
    lacking = subprocess.run([*command, f"--model-repository={Path(tmp_path, 'none')}"], capture_output=True, text=True)
    assert (healthy.returncode, lacking.returncode) == (0, 1)
    assert "problem  model repository" in lacking.stdout
