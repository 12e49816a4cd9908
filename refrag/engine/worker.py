"""Steps an engine in a thread of its own; other threads submit and stop, and deltas go to each request's sink."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future

from refrag.decoders.base import DecoderStats, Sink
from refrag.decoders.sinks import deliver_error, is_abandoned
from refrag.engine.engine import Engine
from refrag.engine.in_flight import RequestIds
from refrag.engine.request import EngineRequest, Output
from refrag.errors import Cancelled, RefragError, ServerUnavailable

log = logging.getLogger(__name__)


class EngineWorker:
    """An engine and the thread that steps it. The thread calls the sinks, and `observe` with the stats of each step.

    open_engine: called in that thread too, so that one thread computes all that the engine ever computes (see
        `refrag.machine.threads.compute_alone`); its errors are raised here.
    """

    engine: Engine

    def __init__(
        self, open_engine: Callable[[], Engine], observe: Callable[[DecoderStats], None] = lambda stats: None
    ) -> None:
        self.open_engine, self.observe = open_engine, observe
        self.sinks: dict[EngineRequest, Sink] = {}
        self.ids: RequestIds[EngineRequest] = RequestIds()
        self.submitted: list[tuple[EngineRequest, Sink]] = []
        self.stopped: list[EngineRequest] = []
        self.changed = threading.Condition()
        self.closing: RefragError | None = None
        self.stats = DecoderStats()
        opened: Future[None] = Future()
        self.thread = threading.Thread(target=self._run, args=[opened], name="decoder-engine", daemon=True)
        self.thread.start()
        opened.result()

    def submit(self, request: EngineRequest, sink: Sink) -> None:
        """Queue the request.

        Raises InvalidRequest (empty, too large, or its id is in flight), Overloaded, or Cancelled (stopped already).
        After `close` or a failure of the worker, raises what ended the worker.
        """
        with self.changed:
            if self.closing is not None:
                raise type(self.closing)(str(self.closing))
            self.ids.check(request.request_id)
            self.engine.check(request, num_ahead=len(self.submitted))
            self.submitted.append((request, sink))
            self.ids.add(request.request_id, request)
            self.changed.notify()

    def stop(self, request_id: str) -> None:
        """End the request before its next step, as `RequestIds.find_to_stop` finds it."""
        with self.changed:
            request = self.ids.find_to_stop(request_id)
            if request is not None:
                self.stopped.append(request)
            self.changed.notify()

    def close(self) -> None:
        """End every request as ServerUnavailable, and the thread."""
        self._close_for(ServerUnavailable("the server is stopping and has cut this answer; ask again later"))
        self.thread.join()

    def _run(self, opened: "Future[None]") -> None:
        """Work until closed. If the loop itself fails, all requests fail, queued and later ones too, and none waits."""
        try:
            self.engine = self.open_engine()
            self.stats = self.engine.stats
        except BaseException as error:
            opened.set_exception(error)
            return
        opened.set_result(None)
        try:
            while self._wait_for_work():
                self._take_orders()
                self._cancel_abandoned()
                for output in self.engine.step():
                    self._deliver(output)
                self._observe()
        except Exception as error:
            log.exception("the decoder's worker failed")
            self._close_for(RefragError(f"the decoder's worker failed and must be restarted: {error}"))
        assert self.closing is not None
        with self.changed:
            self.sinks.update(self.submitted)
        for request in list(self.sinks):
            self._fail(request, self.closing)

    def _observe(self) -> None:
        # The engine fills a new one while it steps; whoever asks meanwhile gets the one that is complete.
        self.stats = self.engine.stats
        try:
            self.observe(self.stats)
        except Exception:
            log.exception("the stats of a step could not be reported")

    def _close_for(self, reason: RefragError) -> None:
        with self.changed:
            self.closing = self.closing or reason
            self.changed.notify()

    def _wait_for_work(self) -> bool:
        with self.changed:
            self.changed.wait_for(lambda: self.closing or self.submitted or self.stopped or self.engine.has_work)
            return self.closing is None

    def _take_orders(self) -> None:
        with self.changed:
            submitted, self.submitted = self.submitted, []
            stopped, self.stopped = self.stopped, []
        self.sinks.update(submitted)
        for request, _ in submitted:
            self._add(request)
        for request in stopped:
            if request in self.sinks:
                self._cancel(request, f"request {request.request_id!r} was stopped by its caller")

    def _add(self, request: EngineRequest) -> None:
        try:
            self.engine.add(request)
        except RefragError as error:
            self._fail(request, error)
        except Exception as error:
            log.exception("a request could not be added")
            self._fail(request, RefragError(f"the request could not be added: {error}"))

    def _cancel_abandoned(self) -> None:
        for request in [request for request, sink in self.sinks.items() if is_abandoned(sink)]:
            self._cancel(request, f"the receiver of request {request.request_id!r} is gone")

    def _cancel(self, request: EngineRequest, reason: str) -> None:
        self.engine.cancel(request)
        self._fail(request, Cancelled(reason))

    def _deliver(self, output: Output) -> None:
        """Send the output. The id is given up before the last response, after which the caller may reuse it."""
        if output.error is not None:
            self._fail(output.request, output.error)
            return
        sink = self.sinks[output.request]
        if output.is_last:
            self._release(output.request)
        try:
            if output.choice is not None:
                sink.choose(output.choice)
            if output.delta is not None:
                sink.send(output.delta)
        except Exception as error:
            log.exception("a response could not be sent")
            self.engine.cancel(output.request)
            self._release(output.request)
            deliver_error(sink, RefragError(f"the response could not be sent: {error}"))

    def _fail(self, request: EngineRequest, error: RefragError) -> None:
        sink = self.sinks[request]
        self._release(request)
        deliver_error(sink, error)

    def _release(self, request: EngineRequest) -> None:
        self.sinks.pop(request, None)
        with self.changed:
            self.ids.release(request.request_id, request)
