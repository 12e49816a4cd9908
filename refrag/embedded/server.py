"""EmbeddedServer: the real tritonserver as a context manager."""

import atexit
import logging
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from refrag.embedded.leftovers import FOLDER_PREFIX, remove_leftovers
from refrag.embedded.ports import pick_free_port
from refrag.embedded.probe import GRAPH, ask_server
from refrag.embedded.requirements import Machine, require_machine
from refrag.embedded.run import ServerRun, status_of
from refrag.embedded.runtime import Wheel
from refrag.embedded.settings import INFERENCE, ServerSettings
from refrag.embedded.supervisor import Supervisor
from refrag.embedded.watch import Watch
from refrag.errors import SetupError

log = logging.getLogger(__name__)


class EmbeddedServer:
    """A tritonserver of our own over one model repository; options are those of ServerSettings.

        with EmbeddedServer("model_repository", http_port=0, grpc_port=0, metrics_port=0) as server:
            client = tritonclient.grpc.InferenceServerClient(server.grpc_address)

    Raises SetupError that names what the machine lacks, or why a model did not load. A server that fails, or loses the
    process of a model, ends at once, so that every caller hears of it, and starts again at the same addresses; the
    logger `refrag.embedded` tells. The server ends with this process, however that ends.
    """

    def __init__(self, model_repository: str | Path, **options: Any) -> None:
        self.settings = ServerSettings(model_repository=Path(model_repository), **options)
        self.log_path: Path | None = None
        self._supervisor: Supervisor | None = None

    def __enter__(self) -> "EmbeddedServer":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def http_address(self) -> str:
        return self.settings.address("http")

    @property
    def grpc_address(self) -> str:
        return self.settings.address("grpc")

    @property
    def metrics_address(self) -> str:
        return self.settings.address("metrics")

    @property
    def process_id(self) -> int | None:
        """Id of the server's process, and of its process group; None while it does not run."""
        return self._supervisor.run.process.process_id if self._supervisor else None

    def start(self) -> "EmbeddedServer":
        """Return once every model is ready; raise SetupError, with nothing left running, if that fails."""
        if self._supervisor:
            raise RuntimeError("the server runs already; stop() it first")
        remove_leftovers()
        machine = Machine.inspect(self.settings)
        require_machine(machine, self.settings)
        assert machine.wheel is not None, "require_machine() lets no machine without the wheel pass"
        if self.settings.is_reachable_from_outside:
            log.warning(
                "the server listens on %s, where whoever reaches its ports can use it; docs/operations.md tells how to "
                "put a proxy in front of it",
                self.settings.host,
            )
        try:
            self.settings = with_picked_ports(self.settings)
            self.log_path = Path(self.settings.log_path or _new_log_path())
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            self._supervise(machine.wheel, self.log_path)
        except OSError as error:
            raise SetupError(f"the server could not be launched: {error}") from error
        return self

    def stop(self) -> int:
        """End the server and everything it started; do nothing if it does not run.

        Returns how many answers were still running at the end of the drain; their callers get ServerUnavailable.
        """
        supervisor = self._supervisor
        if supervisor is None:
            return 0
        num_cut = supervisor.close()
        self._supervisor = None
        atexit.unregister(self.stop)
        if self.settings.log_path is None and self.log_path and supervisor.failure is None:
            self.log_path.unlink(missing_ok=True)
        return num_cut

    def wait(self) -> str | None:
        """Block until the server has ended for good: return None after stop(), or why it has given up."""
        supervisor = self._supervisor
        if supervisor is None:
            raise RuntimeError("the server does not run; start() it first")
        supervisor.wait()
        return supervisor.failure

    def _supervise(self, wheel: Wheel, log_path: Path) -> None:
        def new_run() -> ServerRun:
            return ServerRun(wheel, self.settings, log_path)

        run = new_run()
        try:
            run.start()
        except BaseException:
            run.kill()
            raise
        self._supervisor = Supervisor(self.settings, run, new_run, self._watch)
        atexit.register(self.stop)

    def _watch(self, run: ServerRun) -> Watch:
        has_graph = (self.settings.model_repository / GRAPH).is_dir()
        is_closed = self.settings.closes(INFERENCE)
        if is_closed:
            log.warning("inference on HTTP wants a key, so the server is not asked whether it still answers")
        is_asked = has_graph and self.settings.probe_seconds and not is_closed
        probe = (lambda: ask_server(self.http_address)) if is_asked else None
        assert run.process.process_id is not None, "a run that is ready has a process"
        return Watch(run.process.process_id, self._is_loaded, probe, self.settings.probe_seconds)

    def _is_loaded(self, model: str) -> bool:
        # 400 is Triton's word for a model that was unloaded; a model whose process is gone is still called ready.
        return status_of(self.http_address, f"/v2/models/{model}/ready") != 400


def with_picked_ports(settings: ServerSettings) -> ServerSettings:
    """Return `settings` with a free port wherever 0 asked for one."""
    ports = dict(settings.ports)
    for name, port in ports.items():
        ports[name] = port or pick_free_port(settings.host, taken=ports.values())
    return replace(settings, http_port=ports["http"], grpc_port=ports["grpc"], metrics_port=ports["metrics"])


def _new_log_path() -> str:
    handle, path = tempfile.mkstemp(prefix=FOLDER_PREFIX, suffix=".log")
    os.close(handle)
    return path
