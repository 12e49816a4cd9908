"""The asyncio client: the calls of `refrag_client.client` as coroutines."""

import asyncio
import contextlib
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from refrag_client.answer import Answer, Piece
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


class AsyncRefragClient(BaseClient):
    """A client of one model on one server, for one event loop and best used in an `async with` block."""

    async def generate(
        self, question: str, passages: Iterable[str] = (), **options: "Unpack[GenerateOptions]"
    ) -> Answer:
        """Return the whole answer to `question` from `passages`; GenerateRequest lists the options."""
        async with self.stream(question, passages, **options) as stream:
            async for _ in stream:
                pass
            return stream.answer

    def stream(
        self, question: str, passages: Iterable[str] = (), **options: "Unpack[GenerateOptions]"
    ) -> "AsyncStream":
        """Return a stream that brings the same answer in pieces, as the server generates it."""
        stream = AsyncStream(self._stub, self._exchange(question, passages, options), self.settings)
        self._streams.add(stream)
        return stream

    async def is_ready(self, timeout_seconds: float = READY_TIMEOUT_SECONDS) -> bool:
        """Return whether the server answers and has loaded the model; a failed call counts as no."""
        try:
            answer = await self._stub.ModelReady(
                self._ready_request(), timeout=timeout_seconds, metadata=self.settings.metadata
            )
        except grpc.RpcError:
            return False
        return bool(answer.ready)

    async def wait_until_ready(self, timeout_seconds: float = 60.0) -> None:
        """Return once the model is ready, or raise ServerUnavailable after `timeout_seconds`."""
        with contextlib.suppress(asyncio.TimeoutError):
            return await asyncio.wait_for(self._poll_until_ready(), timeout_seconds)
        raise self._never_ready(timeout_seconds)

    async def close(self) -> None:
        """Cancel every open stream and close the connection; the client must not be used afterwards."""
        await asyncio.gather(*(stream.cancel() for stream in self._streams))
        await self._channel.close()

    async def __aenter__(self) -> "Self":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _prepare(self) -> None:
        self._credentials = self.settings.credentials
        self._streams: WeakSet[AsyncStream] = WeakSet()

    async def _poll_until_ready(self) -> None:
        while not await self.is_ready():
            await asyncio.sleep(READY_PAUSE_SECONDS)

    # Made on first use, because a channel belongs to the event loop that runs at that moment.
    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        options = self.settings.channel_options
        if self._credentials is None:
            return grpc.aio.insecure_channel(self.settings.url, options=options)
        return grpc.aio.secure_channel(self.settings.url, self._credentials, options=options)

    @cached_property
    def _stub(self) -> Any:
        return service_pb2_grpc.GRPCInferenceServiceStub(self._channel)


class AsyncStream(BaseStream):
    """An answer that is still arriving: iterate over its pieces, in an `async with` block or to the end.

    A loop may end and another one go on. The end of the block, the task's cancellation or `cancel()` makes the server
    stop generating; so does Python, later, when it collects a stream that nobody holds.
    """

    def __init__(self, stub: Any, exchange: Exchange, settings: ClientSettings) -> None:
        super().__init__(stub, exchange, settings)
        self._call = stub.ModelStreamInfer(
            iter([exchange.message]), timeout=settings.timeout_seconds, metadata=self._metadata
        )

    async def cancel(self) -> None:
        """Make the server stop; a pending or later read raises Cancelled. A stream that is over is left alone."""
        if self._is_cancelled or self._exchange.is_over:
            return
        self._is_cancelled = True
        # Cancel the call first, so that no further step of the ensemble starts; then stop the step that runs already.
        self._call.cancel()
        await _send_stop(self._stub, self._exchange.stop_message, self._metadata)

    def __del__(self) -> None:
        # A stream that nobody can read any more; without a running loop nothing can be sent.
        with contextlib.suppress(AttributeError, RuntimeError):
            if self._is_cancelled or self._exchange.is_over:
                return
            stopping = asyncio.get_running_loop().create_task(
                _send_stop(self._stub, self._exchange.stop_message, self._metadata)
            )
            _STOPPING.add(stopping)
            stopping.add_done_callback(_STOPPING.discard)

    def __aiter__(self) -> "Self":
        return self

    async def __anext__(self) -> Piece:
        piece = await self._receive()
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def __aenter__(self) -> "Self":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cancel()

    async def _receive(self) -> Piece | None:
        """Return the next piece, or None at the end."""
        if self._is_cancelled:
            raise self._exchange.cancelled()
        piece = None
        while piece is None and not self._exchange.is_over:
            piece = await self._receive_response()
        return piece

    async def _receive_response(self) -> Piece | None:
        try:
            response = await self._call.read()
            if response is grpc.aio.EOF:
                raise self._exchange.cut_off()
            return self._exchange.receive(response)
        except grpc.RpcError as error:
            failure = self._exchange.failure(error)
            await self.cancel()
            raise failure from error
        except asyncio.CancelledError:
            # Our own cancel() ends a pending read with the same exception as a cancelled task.
            if self._is_cancelled:
                raise self._exchange.cancelled() from None
            await self.cancel()
            raise
        except BaseException:
            await self.cancel()
            raise


# The loop itself holds its tasks weakly.
_STOPPING: set["asyncio.Task[None]"] = set()


async def _send_stop(stub: Any, message: service_pb2.ModelInferRequest, metadata: Any) -> None:
    """Tell the decoder to stop; return once it has heard, or after STOP_TIMEOUT_SECONDS."""
    with contextlib.suppress(Exception):
        async for _ in stub.ModelStreamInfer(iter([message]), timeout=STOP_TIMEOUT_SECONDS, metadata=metadata):
            pass
