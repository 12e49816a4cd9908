"""Ends the answers in flight with a typed error before a server that stops cuts their connections.

Triton tells a model that the server stops only once no request is running. So whoever stops the server creates a file
that the decoder looks for: the embedded server does so at the end of its drain, elsewhere a hook may.
"""

import os
from collections.abc import Callable
from pathlib import Path

from refrag.serving.periodic import Periodic
from refrag.variables import CUT_ANSWERS_SUFFIX, STOP_FILE

_POLL_SECONDS = 0.1


class StopFile:
    """Calls `stop` once the file appears or changes, and writes how many answers that has cut into the file beside it.

    Does nothing where no file is named. A file that is there at the start was left by an earlier run.
    """

    def __init__(self, stop: Callable[[], int]) -> None:
        name = os.environ.get(STOP_FILE)
        self._stop, self._path = stop, Path(name) if name else None
        self._is_done = False
        self._left_at = self._changed_at()
        self._periodic = Periodic("stop-file", _POLL_SECONDS, self._look) if self._path else None

    def close(self) -> None:
        if self._periodic is not None:
            self._periodic.close()

    def _look(self) -> None:
        assert self._path is not None
        if self._is_done or self._changed_at() in (None, self._left_at):
            return
        self._is_done = True
        self._path.with_suffix(CUT_ANSWERS_SUFFIX).write_text(str(self._stop()))

    def _changed_at(self) -> int | None:
        """Return when the file was last changed, in nanoseconds; None where there is none."""
        try:
            return self._path.stat().st_mtime_ns if self._path else None
        except FileNotFoundError:
            return None
