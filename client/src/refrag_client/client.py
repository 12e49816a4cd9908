"""The blocking client: one channel carries any number of requests from any number of threads."""

import contextlib
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from refrag_client.answer import Answer, Piece
from refrag_client.background import Reader, run_in_background
from refrag_client.base_client import (
    READY_PAUSE_SECONDS,
    READY_TIMEOUT_SECONDS,
    STOP_TIMEOUT_SECONDS,
    BaseClient,
    BaseStream,
)
from refrag_client.exchange import Exchange
from refrag_client.request import GenerateOptions
from refrag_client.settings import ClientSettings

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class RefragClient(BaseClient):
    """A client of one model on one server, safe to share between threads and best used in a `with` block.

    Every error that its methods raise is a RefragError: see `refrag_client.errors`.
    """

    def generate(self, question: str, passages: Iterable[str] = (), **options: "Unpack[GenerateOptions]") -> Answer:
        """Return the whole answer to `question` from `passages`; GenerateRequest lists the options."""
        with self.stream(question, passages, **options) as stream:
            for _ in stream:
                pass
            return stream.answer

    def stream(self, question: str, passages: Iterable[str] = (), **options: "Unpack[GenerateOptions]") -> "Stream":
        """Send the same request, and return a stream that brings the answer in pieces as the server generates it."""
        stream = Stream(self._stub, self._exchange(question, passages, options), self.settings)
        with self._lock:
            self._streams.add(stream)
        stream._send()
        return stream

    def is_ready(self, timeout_seconds: float = READY_TIMEOUT_SECONDS) -> bool:
        """Return whether the server answers and has loaded the model; a failed call counts as no."""
        try:
            answer = self._stub.ModelReady(
                self._ready_request(), timeout=timeout_seconds, metadata=self.settings.metadata
            )
        except grpc.RpcError:
            return False
        return bool(answer.ready)

    def wait_until_ready(self, timeout_seconds: float = 60.0) -> None:
        """Return once the model is ready, or raise ServerUnavailable after `timeout_seconds`."""
        deadline = time.monotonic() + timeout_seconds
        while not self.is_ready(max(READY_PAUSE_SECONDS, min(READY_TIMEOUT_SECONDS, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                raise self._never_ready(timeout_seconds)
            time.sleep(READY_PAUSE_SECONDS)

    def close(self) -> None:
        """Cancel every open stream and close the connection; the client must not be used afterwards."""
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            stream.cancel()
        self._channel.close()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self) -> None:
        self._channel = self.settings.open_channel()
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._streams: WeakSet[Stream] = WeakSet()
        self._lock = threading.Lock()


class Stream(BaseStream):
    """An answer that is still arriving: iterate over its pieces, in a `with` block or to the end.

    A loop may end and another one go on. The end of the block or `cancel()` makes the server stop generating; so does
    Python when it collects a stream that nobody holds, such as that of `for piece in client.stream(…)` after a `break`.
    """

    def __init__(self, stub: Any, exchange: Exchange, settings: ClientSettings) -> None:
        super().__init__(stub, exchange, settings)
        metadata, timeout_seconds = self._metadata, settings.timeout_seconds
        # Without `self`: the thread that reads must not keep alive a stream that nobody else holds.
        self._reader = Reader(lambda: _open_call(stub, exchange.message, timeout_seconds, metadata))

    def cancel(self) -> None:
        """Make the server stop; a pending or later read raises Cancelled. A stream that is over is left alone."""
        if self._is_cancelled or self._exchange.is_over:
            return
        self._is_cancelled = True
        run_in_background(self._stop, STOP_TIMEOUT_SECONDS)

    def __del__(self) -> None:
        # Half made, or at the interpreter's end, a stream has lost what it needs to stop anything.
        with contextlib.suppress(Exception):
            self.cancel()

    def __iter__(self) -> "Self":
        return self

    def __next__(self) -> Piece:
        piece = self._receive()
        if piece is None:
            raise StopIteration
        return piece

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def _send(self) -> None:
        try:
            self._reader.start()
        except BaseException:  # an interrupt may come after the request was sent
            self.cancel()
            raise

    def _receive(self) -> Piece | None:
        """Return the next piece, or None at the end."""
        if self._is_cancelled:
            raise self._exchange.cancelled()
        piece = None
        while piece is None and not self._exchange.is_over:
            piece = self._receive_response()
        return piece

    def _receive_response(self) -> Piece | None:
        try:
            response = self._reader.take()
            if response is None:
                raise self._exchange.cut_off()
            return self._exchange.receive(response)
        except grpc.RpcError as error:
            failure = self._exchange.failure(error)
            self.cancel()
            raise failure from error
        except BaseException:  # a KeyboardInterrupt ends the wait here, and must end the server's work too
            self.cancel()
            raise

    def _stop(self) -> None:
        # Cancel the call first, so that no further step of the ensemble starts; then stop the step that runs already.
        self._reader.cancel()
        list(_open_call(self._stub, self._exchange.stop_message, STOP_TIMEOUT_SECONDS, self._metadata))


def _open_call(stub: Any, message: service_pb2.ModelInferRequest, timeout_seconds: float | None, metadata: Any) -> Any:
    return stub.ModelStreamInfer(iter([message]), timeout=timeout_seconds, metadata=metadata)
