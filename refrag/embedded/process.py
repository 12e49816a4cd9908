"""The server as a child process that cannot outlive us, and leaves no process and no shared memory behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from refrag.embedded.leftovers import remove_run, take_lock

_BIND_TO_PARENT = Path(__file__).parent / "bind_to_parent.py"
# A killed process ends as soon as the kernel has freed what it held, which takes a moment for gigabytes.
_GROUP_SECONDS, _GROUP_POLL_SECONDS = 10.0, 0.02


class ServerProcess:
    """A command in a process group of its own, whose remains are removed once it ends.

    The kernel sends the parent-death signal when the *thread* that started the child ends. So a thread
    that lives exactly as long as the child starts it, waits for it, and cleans up.

    folder: the run's own; if we are killed too, the next server removes it.
    """

    def __init__(
        self,
        command: list[str],
        environment: Mapping[str, str],
        log_path: Path,
        shared_memory_prefix: str,
        folder: Path,
    ) -> None:
        self._command = [sys.executable, "-I", "-S", str(_BIND_TO_PARENT), str(os.getpid()), *command]
        self._environment = dict(environment)
        self._log_path = log_path
        self._shared_memory_prefix, self._folder = shared_memory_prefix, folder
        self._started = threading.Event()
        self._ended = threading.Event()
        self._reaping = threading.Lock()
        self._keeper = threading.Thread(target=self._keep, name="tritonserver keeper", daemon=True)
        self.process_id: int | None = None
        self.exit_code: int | None = None
        self.start_error: Exception | None = None

    def start(self) -> None:
        self._keeper.start()
        self._started.wait()
        if self.start_error:
            raise self.start_error

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Return whether the process has ended, and what it left behind is gone, within the time given."""
        return self._ended.wait(timeout_seconds)

    def ask_to_end(self) -> None:
        self._signal_server(signal.SIGTERM)

    def kill(self) -> None:
        """End the server, and with it its whole group, and return when nothing of it is left."""
        if self._keeper.ident is not None:
            self._signal_server(signal.SIGKILL)
            self.wait()

    def _keep(self) -> None:
        try:
            process = self._spawn()
        except Exception as error:  # Whatever it is: who starts us waits for it.
            self.start_error = error
            self._ended.set()
            return
        finally:
            self._started.set()
        try:
            self._wait_and_clean_up(process)
        finally:
            self._ended.set()

    def _wait_and_clean_up(self, process: subprocess.Popen[bytes]) -> None:
        # The server is not reaped yet, so its number still names our group and no one else's.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        os.killpg(process.pid, signal.SIGKILL)
        _wait_for_group(process.pid)
        with self._reaping:
            self.exit_code = process.wait()
        # The server removes its regions when it ends in order; after a crash, and after a busy port too, they stay.
        remove_run(self._shared_memory_prefix)

    def _spawn(self) -> subprocess.Popen[bytes]:
        lock = take_lock(self._shared_memory_prefix, self._folder)
        try:
            return self._spawn_with(lock)
        finally:
            # The server has inherited it; as long as it runs, the lock is held.
            os.close(lock)

    def _spawn_with(self, lock: int) -> subprocess.Popen[bytes]:
        # Models may log what they were asked.
        with open(self._log_path, "ab", opener=partial(os.open, mode=0o600)) as log:
            process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[lock],
            )
        self.process_id = process.pid
        return process

    def _signal_server(self, number: signal.Signals) -> None:
        with self._reaping:
            if self.process_id is not None and self.exit_code is None:
                os.kill(self.process_id, number)


def _wait_for_group(group: int) -> None:
    """Return when no process of a killed group runs any more, or after far more time than the kernel takes for it."""
    deadline = time.monotonic() + _GROUP_SECONDS
    while _is_running(group) and time.monotonic() < deadline:
        time.sleep(_GROUP_POLL_SECONDS)


def _is_running(group: int) -> bool:
    """Return whether a process of the group runs; one that nobody has reaped yet has ended."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, its_group, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # It has ended meanwhile.
            continue
        if int(its_group) == group and state != "Z":
            return True
    return False
