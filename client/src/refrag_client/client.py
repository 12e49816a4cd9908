"""The blocking client; one channel carries any number of requests, from any number of threads."""

import threading
import time
from collections.abc import Iterable, Iterator
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
    """Asks one model of one server; safe to share between threads, and best used in a `with` block.

    Every method raises a RefragError: see `refrag_client.errors`.
    """

    def generate(self, question: str, passages: Iterable[str] = (), **options: "Unpack[GenerateOptions]") -> Answer:
        """The whole answer to `question` from `passages`; GenerateRequest lists the options."""
        with self.stream(question, passages, **options) as stream:
            for _ in stream:
                pass
            return stream.answer

    def stream(self, question: str, passages: Iterable[str] = (), **options: "Unpack[GenerateOptions]") -> "Stream":
        """The same answer piece by piece, as the server generates it."""
        stream = Stream(self._stub, self._exchange(question, passages, options), self.settings)
        with self._lock:
            self._streams.add(stream)
        stream._send()
        return stream

    def is_ready(self, timeout_seconds: float = READY_TIMEOUT_SECONDS) -> bool:
        """Whether the server answers and the model is loaded; never raises."""
        try:
            answer = self._stub.ModelReady(
                self._ready_request(), timeout=timeout_seconds, metadata=self.settings.metadata
            )
        except grpc.RpcError:
            return False
        return bool(answer.ready)

    def wait_until_ready(self, timeout_seconds: float = 60.0) -> None:
        """Return once the model can be asked, or raise ServerUnavailable after `timeout_seconds`."""
        deadline = time.monotonic() + timeout_seconds
        while not self.is_ready(max(READY_PAUSE_SECONDS, min(READY_TIMEOUT_SECONDS, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                raise self._never_ready(timeout_seconds)
            time.sleep(READY_PAUSE_SECONDS)

    def close(self) -> None:
        """Cancel what is still streaming and close the connection; the client must not be used afterwards."""
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
    """One answer on its way: iterate over its pieces, in a `with` block or to the end.

    Leaving early, by `break`, an exception or `cancel()`, makes the server stop generating.
    """

    def __init__(self, stub: Any, exchange: Exchange, settings: ClientSettings) -> None:
        super().__init__(stub, exchange, settings)
        self._reader = Reader(lambda: self._open_call(exchange.message, settings.timeout_seconds))

    def cancel(self) -> None:
        """Make the server stop; a pending or later read raises Cancelled. Nothing happens after the end."""
        if self._is_cancelled or self._exchange.is_over:
            return
        self._is_cancelled = True
        run_in_background(self._stop, STOP_TIMEOUT_SECONDS)

    def __iter__(self) -> Iterator[Piece]:
        # A generator, since `break` closes it: the only way to hear of it.
        try:
            while (piece := self._receive()) is not None:
                yield piece
        finally:
            self.cancel()

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
        except BaseException:  # an interrupt may come when the request is on its way already
            self.cancel()
            raise

    def _receive(self) -> Piece | None:
        """The next piece, or None at the end."""
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
        except BaseException:  # a KeyboardInterrupt ends the wait, and must end the work as well
            self.cancel()
            raise

    def _stop(self) -> None:
        # First the call, so that no further step of the ensemble starts, then the step that runs already.
        self._reader.cancel()
        list(self._open_call(self._exchange.stop_message, STOP_TIMEOUT_SECONDS))

    def _open_call(self, message: service_pb2.ModelInferRequest, timeout_seconds: float | None) -> Any:
        return self._stub.ModelStreamInfer(iter([message]), timeout=timeout_seconds, metadata=self._metadata)
