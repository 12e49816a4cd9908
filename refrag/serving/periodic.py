"""Repeats an action in a thread of its own, until it is closed."""

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Periodic:
    """An action called every `seconds`, for the first time at once or after `seconds`; what it raises is logged."""

    def __init__(self, name: str, seconds: float, action: Callable[[], None], at_once: bool = False) -> None:
        self._seconds, self._action, self._at_once = seconds, action, at_once
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        if self._at_once:
            self._try()
        while not self._closed.wait(self._seconds):
            self._try()

    def _try(self) -> None:
        try:
            self._action()
        except Exception:
            log.exception("%s failed", threading.current_thread().name)
