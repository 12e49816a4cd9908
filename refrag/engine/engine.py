"""The engine: one worker thread that takes turns among the active requests, one decoding step each.

A request may end in four ways: its answer is complete, its caller stops it, its deadline passes, or its own
step fails. None of them touches a neighbour: every request has its own cache, sampler and text.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from refrag.engine.generation import Delta
from refrag.errors import Cancelled, DeadlineExceeded, InvalidRequest, Overloaded, RefragError

log = logging.getLogger(__name__)

# A stop may overtake its request on the way through the graph; it is remembered for this long.
EARLY_STOP_SECONDS = 30.0
# Early stops, and ids of finished requests, that are remembered at most.
MAX_REMEMBERED_IDS = 4096


class Sink(Protocol):
    """Where a request's deltas go. Exactly one of a delta with a finish reason, or `fail`, comes last."""

    def send(self, delta: Delta) -> None: ...

    def fail(self, error: RefragError) -> None: ...

    def is_abandoned(self) -> bool:
        """Whether the receiver is known to be gone."""


@dataclass(frozen=True)
class EngineSettings:
    """max_active: requests that decode in turn. max_waiting: requests that wait for a place; more are refused."""

    max_active: int = 32
    max_waiting: int = 256


@dataclass(eq=False)
class Job:
    """One request in the engine. `start` opens its deltas; an empty request_id cannot be stopped by id."""

    request_id: str
    start: Callable[[], Iterator[Delta]]
    sink: Sink
    deadline: float  # time.monotonic() seconds
    deltas: Iterator[Delta] | None = None
    stopped: bool = False


class Engine:
    """Submit jobs from any thread; their sinks are called from the worker."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.waiting: deque[Job] = deque()
        self.active: list[Job] = []
        self.early_stops: OrderedDict[str, float] = OrderedDict()
        self.finished: OrderedDict[str, None] = OrderedDict()
        self.changed = threading.Condition()
        self.closing: RefragError | None = None
        self.worker = threading.Thread(target=self._run, name="decoder-engine", daemon=True)
        self.worker.start()

    def submit(self, job: Job) -> None:
        """Queue the job, or raise InvalidRequest (its id is in flight), Overloaded, or Cancelled (stopped already)."""
        with self.changed:
            if self.closing is not None:
                raise self.closing
            if self._find(job.request_id) is not None:
                raise InvalidRequest(
                    f"request id {job.request_id!r} is in flight already; give every request an id of its own"
                )
            if self._take_early_stop(job.request_id):
                raise Cancelled(f"request {job.request_id!r} was stopped before it reached the decoder")
            if len(self.waiting) >= self.settings.max_waiting:
                raise Overloaded(
                    f"{len(self.waiting)} requests wait for the decoder, the limit is {self.settings.max_waiting}; "
                    "try again later or add replicas"
                )
            self.waiting.append(job)
            self.changed.notify()

    def stop(self, request_id: str) -> None:
        """End the request before its next step; one not seen yet is refused when it comes, a finished one let be."""
        if not request_id:
            raise InvalidRequest("stop came without a request id; send it with the id of the request to stop")
        with self.changed:
            job = self._find(request_id)
            if job is not None:
                job.stopped = True
            elif request_id not in self.finished:
                _remember(self.early_stops, request_id, time.monotonic() + EARLY_STOP_SECONDS)
            self.changed.notify()

    def close(self) -> None:
        """Cancel everything and end the worker."""
        self._close_for(Cancelled("the decoder is shutting down"))
        self.worker.join()

    def _run(self) -> None:
        """Work until closed. Should the loop itself fail, nothing queued or sent later may wait for it in vain."""
        try:
            while self._wait_for_work():
                self._drop_ended()
                self._admit()
                for job in list(self.active):
                    self._advance(job)
        except Exception as error:
            log.exception("the decoder's worker failed")
            self._close_for(RefragError(f"the decoder's worker failed and must be restarted: {error}"))
        assert self.closing is not None
        for job in [*self.active, *self.waiting]:
            _fail(job, self.closing)

    def _close_for(self, reason: RefragError) -> None:
        with self.changed:
            self.closing = self.closing or reason
            self.changed.notify()

    def _wait_for_work(self) -> bool:
        with self.changed:
            self.changed.wait_for(lambda: self.closing or self.active or self.waiting)
            return self.closing is None

    def _admit(self) -> None:
        with self.changed:
            while self.waiting and len(self.active) < self.settings.max_active:
                self.active.append(self.waiting.popleft())

    def _drop_ended(self) -> None:
        """Fail the waiting jobs that nobody needs any more, or whose time is up; they must not take a place first."""
        with self.changed:
            ended = [(job, error) for job in self.waiting if (error := _reason_to_end(job))]
            for job, _ in ended:
                self.waiting.remove(job)
        for job, error in ended:
            _fail(job, error)

    def _advance(self, job: Job) -> None:
        """One step of one job, whatever goes wrong with it."""
        try:
            if error := _reason_to_end(job):
                raise error
            if job.sink.is_abandoned():
                raise Cancelled(f"the receiver of request {job.request_id!r} is gone")
            if job.deltas is None:
                job.deltas = job.start()
            delta = next(job.deltas)
            if delta.finish_reason is not None:
                self._release(job)
            job.sink.send(delta)
        except RefragError as error:
            self._end(job, error)
        except Exception as error:
            log.exception("a decoding step failed")
            self._end(job, RefragError(f"the decoder failed: {error}"))

    def _end(self, job: Job, error: RefragError) -> None:
        self._release(job)
        _fail(job, error)

    def _release(self, job: Job) -> None:
        """Give up the job's place, and its id, before its last response goes out: the caller may reuse the id then."""
        with self.changed:
            if job in self.active:
                self.active.remove(job)
                _remember(self.finished, job.request_id, None)

    def _find(self, request_id: str) -> Job | None:
        if not request_id:
            return None
        return next((job for job in [*self.active, *self.waiting] if job.request_id == request_id), None)

    def _take_early_stop(self, request_id: str) -> bool:
        return self.early_stops.pop(request_id, 0.0) > time.monotonic()


def _reason_to_end(job: Job) -> RefragError | None:
    if job.stopped:
        return Cancelled(f"request {job.request_id!r} was stopped by its caller")
    if time.monotonic() > job.deadline:
        return DeadlineExceeded(f"the deadline of request {job.request_id!r} passed; raise deadline_ms or ask for less")
    return None


def _remember(ids: OrderedDict[str, Any], request_id: str, value: Any) -> None:
    """Keep the newest MAX_REMEMBERED_IDS."""
    ids[request_id] = value
    ids.move_to_end(request_id)
    if len(ids) > MAX_REMEMBERED_IDS:
        ids.popitem(last=False)


def _fail(job: Job, error: RefragError) -> None:
    try:
        job.sink.fail(error)
    except Exception:
        log.exception("a request's error could not be delivered")
