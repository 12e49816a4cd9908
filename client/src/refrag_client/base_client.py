"""Base classes of the two clients: their settings, the exchange made of each call, and what a stream knows."""

from collections.abc import Iterable, Mapping
from typing import Any

from tritonclient.grpc import service_pb2

from refrag_client.answer import Answer
from refrag_client.errors import RefragError, ServerUnavailable
from refrag_client.exchange import Exchange
from refrag_client.request import GenerateOptions, GenerateRequest
from refrag_client.settings import ClientSettings
from refrag_client.tls import Tls

# A caller who leaves a stream waits at most this long for the server to hear of it.
STOP_TIMEOUT_SECONDS = 2.0
READY_TIMEOUT_SECONDS = 5.0
READY_PAUSE_SECONDS = 0.1


class BaseClient:
    def __init__(
        self,
        url: str = "127.0.0.1:8001",
        *,
        model: str = "refrag",
        timeout_seconds: float | None = 60.0,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
        keepalive_seconds: float | None = None,
        max_message_bytes: int | None = None,
        decoder_model: str = "decoder",
        rag_model: str = "refrag_rag",
    ) -> None:
        self.settings = ClientSettings(
            url=url,
            model=model,
            decoder_model=decoder_model,
            rag_model=rag_model,
            timeout_seconds=timeout_seconds,
            tls=tls,
            headers=headers,
            keepalive_seconds=keepalive_seconds,
            max_message_bytes=max_message_bytes,
        )
        self._prepare()

    def _prepare(self) -> None:
        raise NotImplementedError

    def _exchange(self, question: str, passages: Iterable[str], options: GenerateOptions) -> Exchange:
        return Exchange(GenerateRequest(question, passages, **options), self.settings)

    def _ready_request(self) -> service_pb2.ModelReadyRequest:
        return service_pb2.ModelReadyRequest(name=self.settings.model)

    def _never_ready(self, timeout_seconds: float) -> RefragError:
        return ServerUnavailable(
            f"model {self.settings.model!r} at {self.settings.place} is not ready after {timeout_seconds} s; "
            "is the server running there, and did all its models load?"
        )


class BaseStream:
    """An answer that is still arriving; each client adds the reading of its pieces."""

    def __init__(self, stub: Any, exchange: Exchange, settings: ClientSettings) -> None:
        self._stub = stub
        self._exchange = exchange
        self._metadata = settings.metadata
        self._is_cancelled = False

    @property
    def request_id(self) -> str:
        return self._exchange.request_id

    @property
    def answer(self) -> Answer:
        """Return the whole answer. Raises RefragError until the stream has been read to its end."""
        return self._exchange.answer()
