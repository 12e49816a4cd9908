"""Several requests at a time over one stream of batches, with their results in order."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from refrag_client.errors import InvalidRequest, Overloaded, ServerUnavailable

Batch = TypeVar("Batch")
Result = TypeVar("Result")

# Attempts at a request while a server or its store restarts; each pause is twice as long as the one before.
NUM_ATTEMPTS, FIRST_PAUSE_SECONDS = 6, 0.5


def call_in_order(
    batches: Iterator[Batch], call: Callable[[Batch], Result], in_flight: int, hang_up: Callable[[], None]
) -> Iterator[tuple[Batch, Result]]:
    """Call for several batches at a time, and yield them with their results in order.

    So everything before a batch that is yielded is done. A batch that cannot be read ends it, once all before it are
    done. Calls are repeated while the server is busy or restarts.

    hang_up: ends the calls that are running; called where one has failed, and where the caller leaves.
    """
    stopped = threading.Event()
    pending: deque[tuple[Batch, Future[Result]]] = deque()
    failure: InvalidRequest | None = None
    with ThreadPoolExecutor(in_flight) as pool:
        try:
            while (batch := _next(batches)) is not None:
                if isinstance(batch, InvalidRequest):
                    failure = batch
                    break
                pending.append((batch, pool.submit(retry, call, batch, stopped=stopped)))
                if len(pending) > in_flight:
                    yield _first(pending)
            while pending:
                yield _first(pending)
        except BaseException:  # an interrupt, or the end of the loop over this, must not wait for what is running
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            hang_up()
            raise
    if failure is not None:
        raise failure


def retry(call: Callable[..., Any], *arguments: Any, stopped: threading.Event | None = None) -> Any:
    """Call until the server is neither busy nor away; raise its error after several attempts, or once `stopped`."""
    stopped = stopped or threading.Event()
    pause = FIRST_PAUSE_SECONDS
    for _ in range(NUM_ATTEMPTS - 1):
        try:
            return call(*arguments)
        except (Overloaded, ServerUnavailable):
            if stopped.wait(pause):
                raise
            pause *= 2
    return call(*arguments)


def _next(batches: Iterator[Batch]) -> Batch | InvalidRequest | None:
    """Return the error of a bad line instead of raising it, so that the batches before it are done first."""
    try:
        return next(batches, None)
    except InvalidRequest as error:
        return error


def _first(pending: "deque[tuple[Batch, Future[Result]]]") -> tuple[Batch, Result]:
    batch, future = pending.popleft()
    return batch, future.result()
