"""One run of tritonserver: launched, ready, and ended with nothing left of it."""

import http.client
import os
import secrets
import shutil
import tempfile
import time
from pathlib import Path

from refrag.embedded.leftovers import FOLDER_PREFIX
from refrag.embedded.log import extract_errors, find_loading_models
from refrag.embedded.model_configs import are_complete
from refrag.embedded.process import ServerProcess
from refrag.embedded.runtime import Wheel, assemble_runtime, build_environment
from refrag.embedded.settings import HTTP_RESTRICTION, ServerSettings
from refrag.errors import SetupError
from refrag.variables import CUT_ANSWERS_SUFFIX, GRAPH_KEY, STOP_FILE

# 16 MiB per model instance, so that ordinary requests never wait for the region to grow.
_SHARED_MEMORY_BYTES_PER_INSTANCE = 16 * 2**20
# Added to the drain for unloading the models; the server looks once a second whether they are unloaded.
_UNLOAD_SECONDS = 5
# Left of the drain when the decoder is told to end what still runs, so that callers hear of it in time.
_LAST_WORD_SECONDS = 2.0
_POLL_SECONDS = 0.1
# With this argument a caller turns metrics off; then their port is not waited for.
_NO_METRICS = "--allow-metrics=false"
# Protocols that no request for an answer needs, and that let any client harm the others: reading and writing the
# server's shared memory, silencing its log, unloading its models.
_CLOSED_PROTOCOLS = "shared-memory,logging,trace,model-repository"
# Arguments by which models are served that the repository does not hold when the server starts.
_OTHER_MODELS = ("--model-control-mode", "--model-repository", "--model-store")
_RESTRICTIONS = (HTTP_RESTRICTION, "--grpc-restricted-protocol")


class ServerRun:
    """A server process over a runtime directory of its own. `log_path` is appended to."""

    def __init__(self, wheel: Wheel, settings: ServerSettings, log_path: Path) -> None:
        self.settings, self.log_path = settings, log_path
        self._log_start = log_path.stat().st_size if log_path.exists() else 0
        self._runtime = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
        self._stop_file = self._runtime / "stopping"
        # Unique, so that cleaning up can never touch the memory of another server.
        shared_memory_prefix = f"refrag-{os.getpid()}-{secrets.token_hex(4)}-"
        environment = build_environment(wheel, os.environ, settings.environment)
        environment[STOP_FILE] = str(self._stop_file)
        # Each run has its own, unless the user has set one.
        environment[GRAPH_KEY] = environment.get(GRAPH_KEY) or secrets.token_hex(32)
        self.process = ServerProcess(
            build_command(wheel, settings, self._runtime, shared_memory_prefix),
            environment,
            log_path,
            shared_memory_prefix,
            self._runtime,
        )
        self._wheel = wheel

    def start(self) -> None:
        """Return once every model is ready; raise SetupError or OSError otherwise. In any case, `end` must follow."""
        assemble_runtime(self._wheel, self._runtime)
        self.process.start()
        deadline = time.monotonic() + self.settings.ready_timeout_seconds
        while not self._is_ready():
            if self.process.wait(_POLL_SECONDS):
                raise SetupError(self.explain(f"the server ended with exit code {self.process.exit_code}"))
            if time.monotonic() > deadline:
                raise SetupError(self._explain_delay())

    def end(self) -> int:
        """Let running requests finish within the drain, end the server, and return how many answers were cut."""
        drain = float(self.settings.drain_timeout_seconds)
        last_word = min(_LAST_WORD_SECONDS, drain / 2)
        self.process.ask_to_end()
        if not self.process.wait(drain - last_word):
            self._stop_file.touch()
            self.process.wait(last_word + _UNLOAD_SECONDS)
        return self._clean_up()

    def kill(self) -> None:
        """End the server at once, so that every caller who waits for it loses the connection and hears of it."""
        self._clean_up()

    def explain(self, what: str) -> str:
        """Return `what` with the errors in the server's log, which tell why."""
        errors = "\n".join("  - " + error.replace("\n", "\n    ") for error in self.read_errors())
        return f"{what}:\n{errors}\nIts whole log: {self.log_path}"

    def read_errors(self) -> list[str]:
        """Return the errors that this run has logged so far, without the noise around them."""
        return extract_errors(self._read_log())

    def _is_ready(self) -> bool:
        """Return whether the models are ready and the metrics port, which Triton opens last, answers."""
        has_metrics = _NO_METRICS not in self.settings.joined_arguments
        is_up = is_ready(self.settings.address("http"))
        return is_up and (not has_metrics or answers(self.settings.address("metrics"), "/metrics"))

    def _explain_delay(self) -> str:
        loading = ", ".join(find_loading_models(self._read_log())) or "none"
        seconds = self.settings.ready_timeout_seconds
        what = f"the server was not ready within {seconds:g} s (models still loading: {loading})"
        return self.explain(f"{what}; raise ready_timeout_seconds if they only need longer")

    def _read_log(self) -> str:
        # Of a pipe or a terminal, such as /dev/stdout, nothing can be read back.
        if not self.log_path.is_file():
            return ""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def _clean_up(self) -> int:
        self.process.kill()
        cut = self._stop_file.with_suffix(CUT_ANSWERS_SUFFIX)
        num_cut = int(cut.read_text()) if cut.exists() else 0
        shutil.rmtree(self._runtime, ignore_errors=True)
        return num_cut


def build_command(wheel: Wheel, settings: ServerSettings, runtime: Path, shared_memory_prefix: str) -> list[str]:
    config_name = [f"--model-config-name={settings.model_config_name}"] if settings.model_config_name else []
    # Of models that come later, or from elsewhere, nothing is known.
    is_all = not any(argument.startswith(_OTHER_MODELS) for argument in settings.server_arguments)
    is_complete = is_all and are_complete(settings.model_repository, settings.model_config_name)
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
        *(["--disable-auto-complete-config"] if is_complete else []),
        *_restrict(settings),
        *settings.server_arguments,
    ]


def is_ready(http_address: str) -> bool:
    return answers(http_address, "/v2/health/ready")


def answers(address: str, path: str) -> bool:
    return status_of(address, path) == 200


def status_of(address: str, path: str) -> int | None:
    """Return the HTTP status of a GET, or None if nobody answers."""
    # http.client and not urllib, which would send the question through a configured proxy.
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _restrict(settings: ServerSettings) -> list[str]:
    """Return arguments that close what only administrators need, with a key that nobody knows unless one was set.

    Restrictions among the server's arguments take the place of these, protocol by protocol.
    """
    key = settings.admin_key or secrets.token_hex(32)
    given = [argument.partition("=")[0] for argument in settings.joined_arguments]
    return [f"{flag}={_CLOSED_PROTOCOLS}:admin-key={key}" for flag in _RESTRICTIONS if flag not in given]
