"""An answer of the server, piece by piece or whole, with its statistics."""

from dataclasses import dataclass
from typing import Literal

from refrag_client.tensors import Response

FinishReason = Literal["", "stop", "length"]


@dataclass(frozen=True)
class Statistics:
    """Counts that tell how the context reached the decoder.

    A compressed chunk takes one prompt slot, an expanded chunk takes one slot for each of its tokens.
    `num_stored_chunks` counts the chunks whose vectors came from the store; the others were encoded.
    `expanded_chunks` are their numbers, which come with an answer's first piece and its last, and are () in between.
    `num_cut_turns` counts the turns of `history` for which the window had no room even compressed.
    """

    context_tokens: int
    num_chunks: int
    num_stored_chunks: int
    num_expanded_chunks: int
    expanded_chunks: tuple[int, ...]
    prompt_slots: int
    num_output_tokens: int
    num_cut_turns: int


@dataclass(frozen=True)
class Citation:
    """A stretch of a passage that the decoder read in full: its characters from `start` to before `end`.

    `passage` is its number among the passages of the request, from 0.
    """

    passage: int
    start: int
    end: int


@dataclass(frozen=True)
class Piece:
    """The part of an answer that one response brings; `finish_reason` is "" in all but the last piece.

    `log_probs` has one value for each token if the request asked for them, and is empty otherwise.
    `citations` and `passage_weights` come with the last piece, and are () before.
    """

    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    index: int
    finish_reason: FinishReason
    statistics: Statistics
    citations: tuple[Citation, ...]
    passage_weights: tuple[float, ...]


@dataclass(frozen=True)
class Answer:
    """A finished answer. The client measures the times, in seconds, and starts before it encodes the request.

    `ttft_seconds` is the time to the first response that has a token, or None if no response had one.
    `log_probs` has one value for each token if the request asked for them, and is empty otherwise.
    `citations` are in the order of the passages. `passage_weights` has each passage's share of the policy's weight:
    together 1, or all 0 where the policy weighs nothing and no chunk was expanded.
    """

    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: FinishReason
    statistics: Statistics
    citations: tuple[Citation, ...]
    passage_weights: tuple[float, ...]
    ttft_seconds: float | None
    total_seconds: float


def read_piece(response: Response) -> Piece:
    """Return the piece in a response of the model; raise ServerError if a tensor is missing."""
    return Piece(
        text=response.text("text_output"),
        token_ids=response.numbers("token_ids"),
        log_probs=response.reals("token_log_probs"),
        index=response.number("index"),
        finish_reason=response.text("finish_reason"),  # type: ignore[arg-type]  # the server's word for it
        statistics=_read_statistics(response),
        citations=tuple(Citation(*row) for row in response.rows("citations")),
        passage_weights=response.reals("passage_weights"),
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
        num_cut_turns=response.number("num_cut_turns"),
    )
