"""Answers requests with an engine that streams tokens by itself, in a thread with an event loop.

submit ─► a task per request:  engine.stream(request) ── tokens ─► Answer ── deltas ─► sink
stop, deadline, a receiver that is gone, close ─► cancel the task ─► the engine drops the request
"""

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from refrag.decoders.base import DecoderRequest, DecoderStats, Delta, Observe, Sink
from refrag.decoders.sinks import deliver_error, is_abandoned
from refrag.engine.answer import Answer, Pick
from refrag.engine.in_flight import RequestIds
from refrag.errors import Cancelled, DeadlineExceeded, Overloaded, RefragError, ServerUnavailable

log = logging.getLogger(__name__)

# How often receivers are asked whether they are gone.
LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Tokens:
    """Tokens that an engine adds to an answer. admitted_at: when it took the request up, by time.monotonic()."""

    picks: list[Pick]
    admitted_at: float | None = None


class StreamingEngine(Protocol):
    """An engine that computes elsewhere: in other processes, on other machines.

    eos_ids: tokens that end an answer. max_in_flight: more requests at a time are refused.
    """

    tokenizer: PreTrainedTokenizerBase
    eos_ids: Collection[int]
    max_in_flight: int

    async def try_out(self) -> None:
        """Raise SetupError or CheckpointError if the engine cannot answer what it was opened for."""

    def stream(self, request: DecoderRequest, name: str) -> AsyncGenerator[Tokens, None]:
        """Yield the answer's tokens as they come, with the end-of-sequence token if there is one.

        Closing the generator, or cancelling the task that reads it, ends the request. name: unique.
        Raises ServerUnavailable once the engine has died, and RefragError for this request alone.
        """

    def failure(self) -> ServerUnavailable | None:
        """Return why no request can be answered any more, or None."""

    def stats(self) -> DecoderStats:
        """Return the engine's state: requests, and blocks of the KV cache."""

    def close(self) -> None: ...


@dataclass(eq=False)
class Running:
    """A request on its way. task: None until the loop has begun it. token_at: when its latest token came."""

    request: DecoderRequest
    sink: Sink
    task: "asyncio.Task[None] | None" = None
    token_at: float | None = None


class AsyncWorker:
    """An engine and the thread of its event loop, which calls the sinks, and `observe` with what each delta adds.

    open_engine: called in that thread; its errors are raised here.
    """

    engine: StreamingEngine

    def __init__(self, open_engine: Callable[[], StreamingEngine], observe: Observe = lambda stats: None) -> None:
        self.observe = observe
        self.ids: RequestIds[Running] = RequestIds()
        self.running: dict[Running, None] = {}
        self.names = itertools.count()
        self.changing = threading.Lock()
        self.closing: RefragError | None = None
        self.is_closed = False
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="decoder-loop", daemon=True)
        self.thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._open(open_engine), self.loop).result()
        except BaseException:
            self._end_loop()
            raise

    @property
    def stats(self) -> DecoderStats:
        return self.engine.stats()

    def submit(self, request: DecoderRequest, sink: Sink) -> None:
        """Start the request.

        Raises InvalidRequest (its id is in flight), Overloaded, Cancelled (stopped already), or what ended the worker
        or its engine.
        """
        with self.changing:
            if reason := self.closing or self.engine.failure():
                raise type(reason)(str(reason))
            self.ids.check(request.request_id)
            if len(self.running) >= self.engine.max_in_flight:
                raise Overloaded(
                    f"{len(self.running)} requests are with the decoder, the limit is {self.engine.max_in_flight}; try "
                    "again later or add replicas"
                )
            running = Running(request, sink)
            self.running[running] = None
            self.ids.add(request.request_id, running)
            # Under the lock, so that no stop reaches the loop before its request.
            self.loop.call_soon_threadsafe(self._start, running)

    def stop(self, request_id: str) -> None:
        """End the request, as `RequestIds.find_to_stop` finds it."""
        with self.changing:
            running = self.ids.find_to_stop(request_id)
        if running is not None:
            reason = Cancelled(f"request {request_id!r} was stopped by its caller")
            self.loop.call_soon_threadsafe(self._cancel, running, reason)

    def end_requests(self) -> None:
        """End every request as ServerUnavailable, and take no more."""
        with self.changing:
            if self.closing is not None:
                return
            self.closing = ServerUnavailable("the server is stopping and has cut this answer; ask again later")
        asyncio.run_coroutine_threadsafe(self._end_all(self.closing), self.loop).result()

    def close(self) -> None:
        """End every request as `end_requests` does, then the engine and the thread."""
        self.end_requests()
        with self.changing:
            if self.is_closed:
                return
            self.is_closed = True
        self.engine.close()
        self._end_loop()

    async def _open(self, open_engine: Callable[[], StreamingEngine]) -> None:
        self.engine = open_engine()
        try:
            await self.engine.try_out()
        except BaseException:
            self.engine.close()
            raise
        self.look = asyncio.create_task(self._look_for_abandoned())

    def _start(self, running: Running) -> None:
        # Its receiver may have been found to be gone before the loop came to it.
        if running in self.running:
            running.task = asyncio.create_task(self._answer(running))

    async def _answer(self, running: Running) -> None:
        """Send the answer, or the one error that ends it; raise nothing."""
        deadline = running.request.deadline
        timeout = asyncio.timeout_at(None if deadline == float("inf") else deadline)
        try:
            # The loop's clock is time.monotonic, as the deadline's.
            async with timeout:
                await self._stream(running)
        except (asyncio.CancelledError, TimeoutError, Exception) as error:
            # One that was cancelled has been told why already.
            if running in self.running:
                self._fail(running, _reason(running.request, error, timeout.expired()))

    async def _stream(self, running: Running) -> None:
        request = running.request
        answer = Answer(self.engine.tokenizer, self.engine.eos_ids, request.sampling)
        name = f"{next(self.names)}-{request.request_id}"
        async with aclosing(self.engine.stream(request, name)) as stream:
            async for tokens in stream:
                if running.token_at is None and tokens.admitted_at is not None:
                    self._report(DecoderStats(queue_seconds=[max(0.0, tokens.admitted_at - request.arrival)]))
                for pick in tokens.picks:
                    delta = answer.extend(pick)
                    self._deliver(running, delta)
                    if delta.finish_reason is not None:
                        return
        raise RefragError("the decoder ended the answer before its end; the server's log has the details")

    def _deliver(self, running: Running, delta: Delta) -> None:
        """Send the delta. The id is given up before the last one, after which the caller may reuse it."""
        self._note_token(running, len(delta.token_ids))
        if delta.finish_reason is not None:
            self._release(running)
        try:
            running.sink.send(delta)
        except Exception as error:
            log.exception("a response could not be sent")
            self._fail(running, RefragError(f"the response could not be sent: {error}"))
            raise

    def _note_token(self, running: Running, count: int) -> None:
        now = time.monotonic()
        stats = DecoderStats(num_tokens=count)
        if running.token_at is None:
            stats.ttft_seconds.append(now - running.request.arrival)
        else:
            stats.inter_token_seconds.append(now - running.token_at)
        running.token_at = now
        self._report(stats)

    def _report(self, stats: DecoderStats) -> None:
        try:
            self.observe(stats)
        except Exception:
            log.exception("the stats of a step could not be reported")

    def _fail(self, running: Running, error: RefragError) -> None:
        self._release(running)
        deliver_error(running.sink, error)

    def _release(self, running: Running) -> None:
        with self.changing:
            self.running.pop(running, None)
            self.ids.release(running.request.request_id, running)

    def _cancel(self, running: Running, reason: RefragError) -> None:
        if running in self.running:
            self._fail(running, reason)
            if running.task is not None:
                running.task.cancel()

    async def _look_for_abandoned(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for running in list(self.running):
                if is_abandoned(running.sink):
                    name = running.request.request_id
                    self._cancel(running, Cancelled(f"the receiver of request {name!r} is gone"))

    async def _end_all(self, reason: RefragError) -> None:
        self.look.cancel()
        ending = list(self.running)
        for running in ending:
            self._cancel(running, reason)
        tasks = [running.task for running in ending if running.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    def _end_loop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


def _reason(request: DecoderRequest, error: BaseException, is_late: bool) -> RefragError:
    """Return the error to tell the caller of."""
    if is_late:
        return DeadlineExceeded(
            f"the deadline of request {request.request_id!r} passed; raise deadline_ms, or ask for fewer tokens"
        )
    if isinstance(error, RefragError):
        return error
    log.error("a request failed", exc_info=error)
    return RefragError(f"the decoder failed: {type(error).__name__}: {error}; the server's log has the details")
