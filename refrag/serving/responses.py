"""Responses of the model `decoder`: the deltas of one request, each with the request's statistics."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from refrag.decoders.base import Choice, Delta, join_deltas
from refrag.errors import RefragError
from refrag.serving.evidence import NO_CITATIONS, Evidence
from refrag.serving.tensors import float32, int32, strings
from refrag.serving.triton import FAILED, ResponseStream

# Tensors that the ensemble sends the client through the decoder, and their values when the decoder is called directly.
PASS_THROUGH = {
    "context_tokens": int32(0),
    "num_chunks": int32(0),
    "chunk_budget": int32(0),
    "num_stored_chunks": int32(0),
    "num_cut_turns": int32(0),
    "expanded_chunks": int32(),
}
# What `refrag_rag` retrieved, which goes with the first response alone.
RETRIEVED = {
    "passage_ids": strings(),
    "passage_titles": strings(),
    "passage_scores": float32(),
    "passage_texts": strings(),
}


class Statistics:
    """Tensors about the request, which every response carries besides its text.

    evidence: what the answer rests on. Lists may be long, so it goes with the last response alone, and the expanded
    chunks with the first and the last.
    """

    def __init__(self, passed_through: dict[str, np.ndarray], prompt_slots: int, evidence: Evidence) -> None:
        self.passed_through, self.evidence = passed_through, evidence
        expanded = passed_through["expanded_chunks"]
        self.first = {
            **passed_through,
            "num_expanded_chunks": int32(expanded.size),
            "prompt_slots": int32(prompt_slots),
            **NO_CITATIONS,
        }
        self.not_retrieved = {name: RETRIEVED[name] for name in RETRIEVED if name in passed_through}
        self.between = {**self.first, **self.not_retrieved, "expanded_chunks": int32()}
        self.last = {**self.first, **evidence.tensors(expanded)}

    def tensors(self, index: int, is_last: bool) -> dict[str, np.ndarray]:
        """Return those of the response with that number, from 0."""
        if is_last:
            return self.last if index == 0 else {**self.last, **self.not_retrieved}
        return self.between if index else self.first

    def with_choice(self, choice: Choice) -> "Statistics":
        """Return the statistics of the prompt that the decoder has made by its own choice."""
        passed_through = {**self.passed_through, "expanded_chunks": int32(*choice.expanded)}
        return Statistics(passed_through, choice.num_slots, replace(self.evidence, weights=choice.weights))


class StreamingSink:
    """A sink that sends one response for each delta.

    count_unread: told how many tokens an answer had that ended before its end.
    """

    def __init__(self, stream: ResponseStream, statistics: Statistics, count_unread: Callable[[int], None]) -> None:
        self.stream, self.statistics, self.count_unread = stream, statistics, count_unread
        self.index, self.num_tokens = 0, 0

    def choose(self, choice: Choice) -> None:
        self.statistics = self.statistics.with_choice(choice)

    def send(self, delta: Delta) -> None:
        self.num_tokens += len(delta.token_ids)
        self.respond(delta)

    def respond(self, delta: Delta) -> None:
        is_last = delta.finish_reason is not None
        response = {
            "text_output": strings(delta.text),
            "token_ids": int32(*delta.token_ids),
            "output_log_probs": float32(*delta.log_probabilities),
            "index": int32(self.index),
            "finish_reason": strings(delta.finish_reason or ""),
            "num_output_tokens": int32(self.num_tokens),
            **self.statistics.tensors(self.index, is_last),
        }
        self.index += 1
        if is_last:
            self.stream.finish(response)
        else:
            self.stream.send(response)

    def fail(self, error: RefragError) -> None:
        self.count_unread(self.num_tokens)
        if self.index and self.stream.is_relayed:
            self.stream.finish({"text_output": strings(error.to_wire()), "finish_reason": strings(FAILED)})
        else:
            self.stream.fail(error)

    def is_abandoned(self) -> bool:
        return self.stream.is_cancelled()


class CollectingSink(StreamingSink):
    """A sink that sends one response with the whole answer, for callers that cannot stream."""

    def __init__(self, stream: ResponseStream, statistics: Statistics, count_unread: Callable[[int], None]) -> None:
        super().__init__(stream, statistics, count_unread)
        self.deltas: list[Delta] = []

    def respond(self, delta: Delta) -> None:
        self.deltas.append(delta)
        if delta.finish_reason is not None:
            super().respond(join_deltas(self.deltas))
