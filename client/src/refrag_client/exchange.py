"""A request and its responses, without the transport: shared by both clients.

sent ──► pieces … ──► final flag      is_over
     └─► an error                     is_over: the server has let go of the request
     └─► the caller leaves            not is_over: the decoder must be told to stop
"""

import re
import time
from dataclasses import replace
from typing import TypeVar

import grpc
from tritonclient.grpc import service_pb2

from refrag_client.answer import Answer, Piece, read_piece
from refrag_client.errors import (
    Cancelled,
    ConnectionLost,
    DeadlineExceeded,
    RefragError,
    ServerError,
    ServerUnavailable,
    error_from_message,
    error_from_rpc,
)
from refrag_client.request import GenerateRequest
from refrag_client.settings import ClientSettings
from refrag_client.tensors import Response, encode_request, encode_stop

Error = TypeVar("Error", bound=RefragError)

# What gRPC says when no connection came about, and the request was therefore never sent.
_NEVER_CONNECTED = re.compile(r"failed to connect|name resolution|DNS resolution", re.IGNORECASE)


class Exchange:
    """The messages of one request, and the answer put together from what has been received."""

    def __init__(self, request: GenerateRequest, settings: ClientSettings) -> None:
        self._started = time.perf_counter()
        self._settings = settings
        self.request_id = request.request_id
        model = settings.model if request.collection is None else settings.rag_model
        self.message = encode_request(_with_deadline(request, settings.timeout_seconds), model)
        self.stop_message = encode_stop(request.request_id, settings.decoder_model)
        self.is_over = False
        self._pieces: list[Piece] = []
        self._ttft_seconds: float | None = None
        self._total_seconds: float | None = None

    def receive(self, response: service_pb2.ModelStreamInferResponse) -> Piece | None:
        """Return the piece in `response`, or None for the empty final one; raise the error that it carries."""
        if response.error_message:
            self.is_over = True
            raise self._named(error_from_message(response.error_message))
        if response.infer_response.parameters["triton_final_response"].bool_param:
            self.is_over = True
            self._total_seconds = self._elapsed_seconds()
        if response.infer_response.outputs:
            return self._add_piece(response.infer_response)
        if not self._pieces:
            raise self._named(ServerError("the final response came before any other; see the server's log"))
        return None

    def answer(self) -> Answer:
        """Return the whole answer; raise RefragError if it has not ended yet."""
        if self._total_seconds is None:
            raise self._named(RefragError("there is no whole answer; read the stream to its end first"))
        return Answer(
            text="".join(piece.text for piece in self._pieces),
            token_ids=tuple(token_id for piece in self._pieces for token_id in piece.token_ids),
            log_probs=tuple(value for piece in self._pieces for value in piece.log_probs),
            finish_reason=self._pieces[-1].finish_reason,
            statistics=self._pieces[-1].statistics,
            citations=self._pieces[-1].citations,
            passage_weights=self._pieces[-1].passage_weights,
            ttft_seconds=self._ttft_seconds,
            total_seconds=self._total_seconds,
            passages=self._pieces[0].passages,
        )

    def failure(self, error: grpc.RpcError) -> RefragError:
        """Return the typed error for a call that failed or was cancelled before its end."""
        failure = error_from_rpc(error)
        if isinstance(failure, ServerUnavailable):
            self.is_over = True  # a server out of reach cannot be told to stop
            failure = self._unreachable(str(failure))
        if isinstance(failure, DeadlineExceeded):
            failure = DeadlineExceeded(
                f"no whole answer within {self._settings.timeout_seconds} s; raise timeout_seconds or lower max_tokens"
            )
        return self.cancelled() if isinstance(failure, Cancelled) else self._named(failure)

    def cancelled(self) -> Cancelled:
        return self._named(Cancelled("the stream was cancelled before its end"))

    def cut_off(self) -> ServerError:
        return self._named(ServerError("the stream ended without a final response; see the server's log"))

    def _unreachable(self, details: str) -> ServerUnavailable:
        if _NEVER_CONNECTED.search(details):
            return ServerUnavailable(f"no server answers at {self._settings.place}: {details}; is it running there?")
        num_tokens = sum(len(piece.token_ids) for piece in self._pieces)
        lost = ConnectionLost(
            f"the connection to {self._settings.place} was lost after {num_tokens} tokens of the answer: {details}; "
            "ask again once the server is back"
        )
        lost.num_tokens = num_tokens
        return lost

    def _add_piece(self, response: service_pb2.ModelInferResponse) -> Piece:
        piece = read_piece(Response(response))
        if self._ttft_seconds is None and piece.token_ids:
            self._ttft_seconds = self._elapsed_seconds()
        self._pieces.append(piece)
        return piece

    def _elapsed_seconds(self) -> float:
        return time.perf_counter() - self._started

    def _named(self, error: Error) -> Error:
        error.request_id = self.request_id
        return error


def _with_deadline(request: GenerateRequest, timeout_seconds: float | None) -> GenerateRequest:
    """Set the client's timeout as the deadline if there is none, so that the server ends the work of a lost client."""
    if request.deadline_ms is not None or timeout_seconds is None:
        return request
    return replace(request, deadline_ms=min(max(1, int(timeout_seconds * 1000)), 2**63 - 1))
