"""EmbeddedServer: the real tritonserver as a context manager."""

import atexit
import http.client
import os
import secrets
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from refrag.embedded.log import extract_errors, find_loading_models
from refrag.embedded.ports import pick_free_port
from refrag.embedded.process import ServerProcess
from refrag.embedded.requirements import Machine, require_machine
from refrag.embedded.runtime import Wheel, assemble_runtime, build_environment
from refrag.embedded.settings import ServerSettings
from refrag.errors import SetupError

# 16 MiB per model instance, so that ordinary requests never wait for the region to grow.
_SHARED_MEMORY_BYTES_PER_INSTANCE = 16 * 2**20
# Added to the drain for unloading the models; the server looks once a second whether they are unloaded.
_UNLOAD_SECONDS = 5
_POLL_SECONDS = 0.1
# With this argument a caller turns metrics off; then their port is not waited for.
_NO_METRICS = "--allow-metrics=false"


class EmbeddedServer:
    """A tritonserver of our own over one model repository; options are those of ServerSettings.

        with EmbeddedServer("model_repository", http_port=0, grpc_port=0, metrics_port=0) as server:
            client = tritonclient.grpc.InferenceServerClient(server.grpc_address)

    Raises SetupError that names what the machine lacks, or why a model did not load. The server ends
    with this process, however that ends.
    """

    def __init__(self, model_repository: str | Path, **options: Any) -> None:
        self.settings = ServerSettings(model_repository=Path(model_repository), **options)
        self.log_path: Path | None = None
        self._process: ServerProcess | None = None
        self._runtime: Path | None = None
        self._log_start = 0

    def __enter__(self) -> "EmbeddedServer":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def http_address(self) -> str:
        return self._address(self.settings.http_port)

    @property
    def grpc_address(self) -> str:
        return self._address(self.settings.grpc_port)

    @property
    def metrics_address(self) -> str:
        return self._address(self.settings.metrics_port)

    @property
    def process_id(self) -> int | None:
        """Id of the server's process, and of its process group; None while it does not run."""
        return self._process.process_id if self._process else None

    def start(self) -> "EmbeddedServer":
        """Return once every model is ready; raise SetupError, with nothing left running, if that fails."""
        if self._process:
            raise RuntimeError("the server runs already; stop() it first")
        machine = Machine.inspect(self.settings)
        require_machine(machine, self.settings)
        assert machine.wheel is not None, "require_machine() lets no machine without the wheel pass"
        try:
            self.settings = with_picked_ports(self.settings)
            self._launch(machine.wheel)
            self._wait_until_ready()
        except OSError as error:
            self._end(keep_log=True)
            raise SetupError(f"the server could not be launched: {error}") from error
        except BaseException:
            self._end(keep_log=True)
            raise
        return self

    def stop(self) -> None:
        """End the server and everything it started; do nothing if it does not run."""
        if self._process:
            ended_by_itself = self._process.wait(0)
            self._end(keep_log=ended_by_itself)

    def wait(self) -> int:
        """Block until the server ends, by itself or because stop() was called, and return its exit code."""
        process = self._process
        if process is None:
            raise RuntimeError("the server does not run; start() it first")
        process.wait()
        assert process.exit_code is not None, "a process that has ended has an exit code"
        return process.exit_code

    def read_errors(self) -> list[str]:
        """Return the errors that the server has logged so far, without the noise around them."""
        return extract_errors(self._read_log())

    def _launch(self, wheel: Wheel) -> None:
        self._runtime = Path(tempfile.mkdtemp(prefix="refrag-server-"))
        assemble_runtime(wheel, self._runtime)
        self.log_path = Path(self.settings.log_path or self._runtime.with_suffix(".log"))
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        # Unique, so that cleaning up can never touch the memory of another server.
        shared_memory_prefix = f"refrag-{os.getpid()}-{secrets.token_hex(4)}-"
        self._process = ServerProcess(
            build_command(wheel, self.settings, self._runtime, shared_memory_prefix),
            build_environment(wheel, os.environ, self.settings.environment),
            self.log_path,
            shared_memory_prefix,
        )
        atexit.register(self.stop)
        self._process.start()

    def _wait_until_ready(self) -> None:
        assert self._process is not None, "start() launches before it waits"
        deadline = time.monotonic() + self.settings.ready_timeout_seconds
        while not self._is_ready():
            if self._process.wait(_POLL_SECONDS):
                raise SetupError(self._explain(f"the server ended with exit code {self._process.exit_code}"))
            if time.monotonic() > deadline:
                raise SetupError(self._explain_delay())

    def _is_ready(self) -> bool:
        """Return whether the models are ready and the metrics port, which Triton opens last, answers."""
        has_metrics = _NO_METRICS not in self.settings.server_arguments
        return is_ready(self.http_address) and (not has_metrics or answers(self.metrics_address, "/metrics"))

    def _explain(self, what: str) -> str:
        errors = "\n".join("  - " + error.replace("\n", "\n    ") for error in self.read_errors())
        return f"{what}:\n{errors}\nIts whole log: {self.log_path}"

    def _explain_delay(self) -> str:
        loading = ", ".join(find_loading_models(self._read_log())) or "none"
        seconds = self.settings.ready_timeout_seconds
        what = f"the server was not ready within {seconds:g} s (models still loading: {loading})"
        return self._explain(f"{what}; raise ready_timeout_seconds if they only need longer")

    def _read_log(self) -> str:
        if self.log_path is None:
            return ""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def _end(self, keep_log: bool) -> None:
        if self._process:
            self._process.terminate(self.settings.drain_timeout_seconds + _UNLOAD_SECONDS)
        if self._runtime:
            shutil.rmtree(self._runtime, ignore_errors=True)
        if self.settings.log_path is None and self.log_path and not keep_log:
            self.log_path.unlink(missing_ok=True)
        self._process = self._runtime = None
        atexit.unregister(self.stop)

    def _address(self, port: int) -> str:
        if port == 0:
            raise RuntimeError(
                "the port is 0, and start() picks a free one; start() the server before asking for an address"
            )
        # A client cannot connect to "every address of this machine".
        host = "127.0.0.1" if self.settings.host == "0.0.0.0" else self.settings.host
        return f"{host}:{port}"


def with_picked_ports(settings: ServerSettings) -> ServerSettings:
    """Return `settings` with a free port wherever 0 asked for one."""
    ports = dict(settings.ports)
    for name, port in ports.items():
        ports[name] = port or pick_free_port(settings.host, taken=ports.values())
    return replace(settings, http_port=ports["http"], grpc_port=ports["grpc"], metrics_port=ports["metrics"])


def build_command(wheel: Wheel, settings: ServerSettings, runtime: Path, shared_memory_prefix: str) -> list[str]:
    config_name = [f"--model-config-name={settings.model_config_name}"] if settings.model_config_name else []
    return [
        str(wheel.server_binary),
        f"--model-repository={settings.model_repository.resolve()}",
        f"--backend-directory={runtime / 'backends'}",
        f"--cache-directory={runtime / 'caches'}",
        f"--backend-config=python,shm-default-byte-size={_SHARED_MEMORY_BYTES_PER_INSTANCE}",
        f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix}",
        f"--http-address={settings.host}",
        f"--grpc-address={settings.host}",
        f"--metrics-address={settings.host}",
        f"--http-port={settings.http_port}",
        f"--grpc-port={settings.grpc_port}",
        f"--metrics-port={settings.metrics_port}",
        f"--allow-gpu-metrics={str(settings.gpu_metrics).lower()}",
        f"--exit-timeout-secs={settings.drain_timeout_seconds}",
        "--exit-on-error=true",
        "--log-format=ISO8601",
        *config_name,
        *settings.server_arguments,
    ]


def is_ready(http_address: str) -> bool:
    return answers(http_address, "/v2/health/ready")


def answers(address: str, path: str) -> bool:
    # http.client and not urllib, which would send the question through a configured proxy.
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
