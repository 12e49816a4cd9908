"""Memory that a server and the processes of its models take from the machine."""

import re
import threading
from pathlib import Path
from types import TracebackType

from refrag.embedded import EmbeddedServer

SAMPLE_SECONDS = 0.5


class PeakMemory:
    """Notes the most memory of a server, looking twice a second and once more at the end; a context manager.

    peak_mib: the most so far.
    """

    def __init__(self, server: EmbeddedServer) -> None:
        self.server, self.peak_mib = server, 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        is_over = False
        while True:
            self.peak_mib = max(self.peak_mib, memory_mib(self.server))
            if is_over:
                return
            is_over = self._ended.wait(SAMPLE_SECONDS)


def memory_mib(server: EmbeddedServer) -> float:
    """Return the proportional set size, in MiB, of the server's process group."""
    assert server.process_id is not None, "the server does not run"
    sizes = [
        _proportional_kib(process) for process in Path("/proc").glob("[0-9]*") if _group(process) == server.process_id
    ]
    return round(sum(sizes) / 1024, 1)


def _group(process: Path) -> int | None:
    try:
        # The process's name, in brackets, may hold any character.
        return int(process.joinpath("stat").read_text().rpartition(")")[2].split()[2])
    except (OSError, IndexError):
        return None


def _proportional_kib(process: Path) -> int:
    try:
        found = re.search(r"^Pss:\s+(\d+)", process.joinpath("smaps_rollup").read_text(), re.MULTILINE)
    except OSError:  # the process has ended
        return 0
    return int(found[1]) if found else 0
