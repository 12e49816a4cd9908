"""What comes back: an answer, piece by piece or whole, with its statistics."""

from dataclasses import dataclass
from typing import Literal

from refrag_client.tensors import Response

FinishReason = Literal["", "stop", "length"]


@dataclass(frozen=True)
class Statistics:
    """How the context reached the decoder: a compressed chunk takes one prompt slot, an expanded one all its tokens.

    `num_stored_chunks` had their vectors in the store, the others were encoded.
    """

    context_tokens: int
    num_chunks: int
    num_stored_chunks: int
    num_expanded_chunks: int
    expanded_chunks: tuple[int, ...]
    prompt_slots: int
    num_output_tokens: int


@dataclass(frozen=True)
class Piece:
    """What one response adds to the answer; `finish_reason` is "" until the last one.

    `log_probs` has one value for each token if the request asked for them, else none.
    """

    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    index: int
    finish_reason: FinishReason
    statistics: Statistics


@dataclass(frozen=True)
class Answer:
    """A finished answer. Times are the client's own, in seconds from before the request was encoded.

    `ttft_seconds` ends with the first response that has a token, and is None if none had one.
    `log_probs` has one value for each token if the request asked for them, else none.
    """

    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: FinishReason
    statistics: Statistics
    ttft_seconds: float | None
    total_seconds: float


def read_piece(response: Response) -> Piece:
    """The piece in a response of the model, or ServerError when a tensor is missing."""
    return Piece(
        text=response.text("text_output"),
        token_ids=response.numbers("token_ids"),
        log_probs=response.reals("token_log_probs"),
        index=response.number("index"),
        finish_reason=response.text("finish_reason"),  # type: ignore[arg-type]  # the server's word for it
        statistics=_read_statistics(response),
    )


def _read_statistics(response: Response) -> Statistics:
    return Statistics(
        context_tokens=response.number("context_tokens"),
        num_chunks=response.number("num_chunks"),
        num_stored_chunks=response.number("num_stored_chunks"),
        num_expanded_chunks=response.number("num_expanded_chunks"),
        expanded_chunks=response.numbers("expanded_chunks"),
        prompt_slots=response.number("prompt_slots"),
        num_output_tokens=response.number("num_output_tokens"),
    )
