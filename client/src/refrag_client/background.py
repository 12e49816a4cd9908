"""Threads that keep gRPC out of the caller's thread.

A KeyboardInterrupt inside gRPC's Python code can leave a lock taken that the channel's own thread needs. Every call on
the channel then hangs. The caller waits on a `SimpleQueue` instead, which waits in C and takes no such lock.
"""

import _thread
import contextlib
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

# Python notices a signal that comes just before a wait in C only when that wait ends, so waits are short.
WAKE_SECONDS = 0.25


class Reader:
    """A thread that opens a streaming call and reads it."""

    def __init__(self, open_call: Callable[[], Any]) -> None:
        self._open_call = open_call
        self._received: SimpleQueue[Any] = SimpleQueue()
        self._call: Any = None
        self._is_cancelled = False

    def start(self) -> None:
        _start(self._read)

    def take(self) -> Any:
        """Return the next message, or None at the end; raise the exception that ended the call."""
        received = self._wait()
        if isinstance(received, Exception):
            raise received
        return received

    def cancel(self) -> None:
        # `_read` sets `_call` and then reads the flag; this sets the flag and then reads `_call`. One of them cancels.
        self._is_cancelled = True
        if self._call is not None:
            self._call.cancel()

    def _wait(self) -> Any:
        while True:
            with contextlib.suppress(Empty):
                return self._received.get(timeout=WAKE_SECONDS)

    def _read(self) -> None:
        try:
            self._call = self._open_call()
            if self._is_cancelled:
                self._call.cancel()
            for message in self._call:
                self._received.put(message)
        except Exception as error:
            self._received.put(error)
        else:
            self._received.put(None)


def run_in_background(work: Callable[[], None], timeout_seconds: float) -> None:
    """Run `work` in another thread; return when it has ended or failed, or after `timeout_seconds`."""
    done: SimpleQueue[None] = SimpleQueue()
    _start(lambda: _run(work, done))
    with contextlib.suppress(Empty):
        done.get(timeout=timeout_seconds)


def _start(work: Callable[[], None]) -> None:
    # Not threading.Thread: its start() waits on a lock, which an interrupt could leave taken too.
    _thread.start_new_thread(work, ())


def _run(work: Callable[[], None], done: SimpleQueue[None]) -> None:
    with contextlib.suppress(Exception):
        work()
    done.put(None)
