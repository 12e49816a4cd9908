"""Notices that a run of the server no longer serves: a process of it ended, or a probe found no answer.

Triton runs each instance of a Python model in a process of its own, the stub. If a stub dies, the server stays up and
ready, fails every request to that model, and never ends the answers that were on their way.
"""

import math
import os
import queue
import select
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

_STUB = "triton_python_backend_stub"
# A stub's next to last argument is the name of its model's instance, such as decoder_0_0.
_INSTANCE_ARGUMENT = -2
_ENDED = "the server ended by itself"
# How often models that were loaded meanwhile are looked for.
_REFRESH_SECONDS = 5.0
# Failures in a row, since one question may meet a server that is only busy.
_NUM_FAILED_PROBES = 2
_SECONDS_BEFORE_SECOND_PROBE = 5.0


class Watch:
    """Waits for the first sign of failure.

    server_id: process id of a server whose models are loaded.
    is_loaded: whether the model of this name should have a process; asked when one has ended.
    probe: raises an exception if the server does not answer; asked every `probe_seconds`. None asks nothing.
    """

    def __init__(
        self,
        server_id: int,
        is_loaded: Callable[[str], bool],
        probe: Callable[[], object] | None = None,
        probe_seconds: float = 30.0,
    ) -> None:
        self._server_id, self._is_loaded = server_id, is_loaded
        self._probe_seconds = probe_seconds
        self._findings: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._wake = os.eventfd(0)
        self._names = find_model_processes(server_id)
        # Opened at once: a process that ends before the thread begins is noticed too.
        self._handles = _open_handles([server_id, *self._names])
        if server_id not in self._handles.values():
            self._findings.put(_ENDED)
        self._watcher = threading.Thread(target=self._watch_processes, name="model watch", daemon=True)
        self._watcher.start()
        if probe is not None:
            threading.Thread(target=self._ask, args=[probe], name="server probe", daemon=True).start()

    def wait(self) -> str | None:
        """Return what has failed, or None once the watch is closed."""
        return self._findings.get()

    def close(self) -> None:
        """End the watch; does nothing the second time."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._findings.put(None)
        os.eventfd_write(self._wake, 1)
        self._watcher.join()
        for handle in (*self._handles, self._wake):
            os.close(handle)

    def _watch_processes(self) -> None:
        while not self._closed.is_set():
            if (finding := self._next_finding()) is not None:
                self._findings.put(finding)
                return
            self._refresh()

    def _next_finding(self) -> str | None:
        """Wait for the end of a process or the next refresh, and return what has failed, if anything has."""
        poll = select.poll()
        for handle in (*self._handles, self._wake):
            poll.register(handle, select.POLLIN)
        ended = [self._handles[handle] for handle, _ in poll.poll(_REFRESH_SECONDS * 1000) if handle in self._handles]
        if self._server_id in ended:
            return _ENDED
        lost = [process_id for process_id in ended if self._is_loaded(_model_of(self._names[process_id]))]
        self._forget(ended)
        if not lost:
            return None
        names = ", ".join(f"{self._names[process_id]} (process {process_id})" for process_id in lost)
        return f"the process of model instance {names} ended, and Triton does not replace it"

    def _refresh(self) -> None:
        """Watch the processes of models that have been loaded since the last time."""
        current = find_model_processes(self._server_id)
        new = [process_id for process_id in current if process_id not in self._names]
        self._names.update(current)
        self._handles.update(_open_handles(new))

    def _forget(self, process_ids: Iterable[int]) -> None:
        for handle in [handle for handle, process_id in self._handles.items() if process_id in process_ids]:
            del self._handles[handle]
            os.close(handle)

    def _ask(self, probe: Callable[[], object]) -> None:
        failures = 0
        while not self._closed.wait(min(self._probe_seconds, _SECONDS_BEFORE_SECOND_PROBE if failures else math.inf)):
            try:
                probe()
                failures = 0
            except Exception as error:
                failures += 1
                if failures == _NUM_FAILED_PROBES:
                    self._findings.put(f"{failures} probes in a row were not answered; the last one: {error}")
                    return


def find_model_processes(server_id: int) -> dict[int, str]:
    """Return the model instance that each stub of the server runs, by process id."""
    found: dict[int, str] = {}
    for children in Path(f"/proc/{server_id}/task").glob("*/children"):
        # A thread or a child may end while it is read about.
        with suppress(OSError):
            for process_id in map(int, children.read_text().split()):
                arguments = Path(f"/proc/{process_id}/cmdline").read_text().rstrip("\0").split("\0")
                if arguments[0].endswith(_STUB):
                    found[process_id] = arguments[_INSTANCE_ARGUMENT]
    return found


def _open_handles(process_ids: Iterable[int]) -> dict[int, int]:
    """Return the process ids by a handle that becomes readable when the process ends."""
    handles: dict[int, int] = {}
    for process_id in process_ids:
        with suppress(ProcessLookupError):
            handles[os.pidfd_open(process_id)] = process_id
    return handles


def _model_of(instance: str) -> str:
    """Return the model in an instance's name: decoder_0_0 -> decoder."""
    return instance.rsplit("_", 2)[0]
