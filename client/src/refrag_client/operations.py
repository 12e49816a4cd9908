"""Base of the clients of models that operators call: one call, one JSON object in return."""

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import grpc
import numpy as np
from tritonclient.grpc import service_pb2_grpc

from refrag_client.errors import InvalidRequest, ServerUnavailable, error_from_rpc
from refrag_client.settings import ConnectionSettings
from refrag_client.tensors import Response, encode_inputs
from refrag_client.tls import Tls

if TYPE_CHECKING:
    from typing_extensions import Self


class OperationsClient:
    """A client of one model on one server, safe to share between threads and best used in a `with` block.

    default_model: the name that the server's model has unless it was renamed.
    """

    default_model: ClassVar[str]

    def __init__(
        self,
        url: str = "127.0.0.1:8001",
        *,
        model: str | None = None,
        timeout_seconds: float | None = 600.0,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
        keepalive_seconds: float | None = None,
        max_message_bytes: int | None = None,
    ) -> None:
        self.settings = ConnectionSettings(url, timeout_seconds, tls, headers, keepalive_seconds, max_message_bytes)
        self.model = self.default_model if model is None else model
        self._channel = self.settings.open_channel()
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, operation: str, **inputs: np.ndarray) -> tuple[dict[str, Any], Response]:
        response = self._infer(self.model, {"operation": strings([operation]), **inputs})
        return json.loads(response.text("result")), response

    def _infer(self, model: str, inputs: Mapping[str, np.ndarray]) -> Response:
        message = encode_inputs(model, inputs)
        try:
            answer = self._stub.ModelInfer(
                message, timeout=self.settings.timeout_seconds, metadata=self.settings.metadata
            )
        except grpc.RpcError as error:
            failure = error_from_rpc(error)
            if isinstance(failure, ServerUnavailable):
                failure = ServerUnavailable(f"no answer from {self.settings.place}: {failure}; is the server running?")
            raise failure from None
        return Response(answer)


def strings(values: Iterable[str]) -> np.ndarray:
    """Return the values as a BYTES tensor; raise InvalidRequest for one that UTF-8 cannot hold."""
    return np.array([_to_utf8(value) for value in values], dtype=np.object_)


def _to_utf8(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"a text has a lone surrogate at character {error.start}, which UTF-8 cannot hold; decode the text again"
        ) from None
