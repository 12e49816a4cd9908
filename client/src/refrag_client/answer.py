"""An answer of the server, piece by piece or whole, with its statistics."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from refrag_client.tensors import Response

FinishReason = Literal["", "stop", "length"]


@dataclass(frozen=True)
class Statistics:
    """Counts that tell how the context reached the decoder.

    A compressed chunk takes one prompt slot, an expanded chunk takes one slot for each of its tokens.
    `num_stored_chunks` counts the chunks whose vectors came from the store; the others were encoded.
    `expanded_chunks` are their numbers, which come with an answer's first piece and its last, and are () in between.
    `num_cut_turns` counts the turns of `history` for which the window had no room even compressed.
    `chunk_budget` is how many chunks could be expanded before the budget was raised, for `min_confidence`.
    """

    context_tokens: int
    num_chunks: int
    num_stored_chunks: int
    num_expanded_chunks: int
    expanded_chunks: tuple[int, ...]
    prompt_slots: int
    num_output_tokens: int
    num_cut_turns: int
    chunk_budget: int

    @property
    def is_raised(self) -> bool:
        """Return whether more chunks were expanded than the budget allowed, since the policy was not sure enough."""
        return self.num_expanded_chunks > self.chunk_budget


@dataclass(frozen=True)
class Citation:
    """A stretch of a passage that the decoder read in full: its characters from `start` to before `end`.

    `passage` is its number among the passages of the request, from 0.
    """

    passage: int
    start: int
    end: int


@dataclass(frozen=True)
class Passage:
    """A passage of a collection that the server has retrieved; `text` is what the decoder read, under the title.

    `score` tells how well it fits, more is better. `metadata` comes with a search alone, not with an answer.
    """

    id: str
    title: str
    text: str
    score: float
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """The part of an answer that one response brings; `finish_reason` is "" in all but the last piece.

    `log_probs` has one value for each token if the request asked for them, and is empty otherwise.
    `citations` and `passage_weights` come with the last piece, and are () before.
    `passages` are those retrieved for a request that named a collection, in an answer's first piece alone.
    """

    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    index: int
    finish_reason: FinishReason
    statistics: Statistics
    citations: tuple[Citation, ...]
    passage_weights: tuple[float, ...]
    passages: tuple[Passage, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A finished answer. The client measures the times, in seconds, and starts before it encodes the request.

    `ttft_seconds` is the time to the first response that has a token, or None if no response had one.
    `log_probs` has one value for each token if the request asked for them, and is empty otherwise.
    `citations` are in the order of the passages. `passage_weights` has each passage's share of the policy's weight:
    together 1, or all 0 where the policy weighs nothing and no chunk was expanded.
    `passages` are those retrieved for a request that named a collection, best first; empty otherwise.
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
    passages: tuple[Passage, ...] = ()


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
        passages=read_passages(response, "passage_texts") if response.has("passage_texts") else (),
    )


def read_passages(response: Response, texts: str) -> tuple[Passage, ...]:
    """Return the retrieved passages in a response, whose texts are in the tensor `texts`."""
    columns = [response.texts(name) for name in ("passage_ids", "passage_titles", texts)]
    scores = response.reals("passage_scores")
    metadata = response.texts("passage_metadata") if response.has("passage_metadata") else ("{}",) * len(scores)
    rows = zip(*columns, scores, map(json.loads, metadata), strict=True)
    return tuple(Passage(*row) for row in rows)


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
        chunk_budget=response.number("chunk_budget"),
    )
