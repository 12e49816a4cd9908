"""Keeps gRPC's waiting out of the caller's thread.

A KeyboardInterrupt inside gRPC's Python code can leave a lock taken that the channel's own thread needs,
and every call on the channel then hangs. `SimpleQueue` waits in C and has nothing to leave behind.
"""

import contextlib
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

import grpc


# A signal that comes just before a wait in C begins is noticed only when that wait ends.
WAKE_SECONDS = 0.25


def read_in_background(call: Any) -> SimpleQueue:
    """A queue of what `call` receives, ended by its RpcError, or by None when it ended well."""
    received: SimpleQueue = SimpleQueue()
    _start(lambda: _read(call, received))
    return received


def take(received: SimpleQueue) -> Any:
    """The next item of the queue; waits for it, and lets an interrupt through."""
    while True:
        with contextlib.suppress(Empty):
            return received.get(timeout=WAKE_SECONDS)


def run_in_background(work: Callable[[], None], timeout_seconds: float) -> None:
    """Return when `work` is done or failed, or when the time is up."""
    done: SimpleQueue = SimpleQueue()
    _start(lambda: _run(work, done))
    with contextlib.suppress(Empty):
        done.get(timeout=timeout_seconds)


def _start(work: Callable[[], None]) -> None:
    # Daemons, since a server that never answers must not keep the program alive.
    threading.Thread(target=work, daemon=True).start()


def _read(call: Any, received: SimpleQueue) -> None:
    try:
        for response in call:
            received.put(response)
    except grpc.RpcError as error:
        received.put(error)
    else:
        received.put(None)


def _run(work: Callable[[], None], done: SimpleQueue) -> None:
    with contextlib.suppress(Exception):
        work()
    done.put(None)
