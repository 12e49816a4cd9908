"""Responses of the model `decoder`: the deltas of one request, each with the request's statistics."""

from collections.abc import Callable

import numpy as np

from refrag.decoders.base import Delta, join_deltas
from refrag.errors import RefragError
from refrag.serving.tensors import float32, int32, strings
from refrag.serving.triton import ResponseStream

# Tensors that the ensemble sends the client through the decoder, and their values when the decoder is called directly.
PASS_THROUGH = {
    "context_tokens": int32(0),
    "num_chunks": int32(0),
    "num_stored_chunks": int32(0),
    "expanded_chunks": int32(),
}


class Statistics:
    """Tensors about the request, which every response carries besides its text."""

    def __init__(self, passed_through: dict[str, np.ndarray], prompt_slots: int) -> None:
        self.tensors = {
            **passed_through,
            "num_expanded_chunks": int32(passed_through["expanded_chunks"].size),
            "prompt_slots": int32(prompt_slots),
        }
        # The one list among them, which may be long, goes with the first response and the last alone.
        self.tensors_between = {**self.tensors, "expanded_chunks": int32()}


class StreamingSink:
    """A sink that sends one response for each delta.

    count_unread: told how many tokens an answer had that ended before its end.
    """

    def __init__(self, stream: ResponseStream, statistics: Statistics, count_unread: Callable[[int], None]) -> None:
        self.stream, self.statistics, self.count_unread = stream, statistics, count_unread
        self.index, self.num_tokens = 0, 0

    def send(self, delta: Delta) -> None:
        self.num_tokens += len(delta.token_ids)
        self.respond(delta)

    def respond(self, delta: Delta) -> None:
        is_between = self.index > 0 and delta.finish_reason is None
        response = {
            "text_output": strings(delta.text),
            "token_ids": int32(*delta.token_ids),
            "output_log_probs": float32(*delta.log_probabilities),
            "index": int32(self.index),
            "finish_reason": strings(delta.finish_reason or ""),
            "num_output_tokens": int32(self.num_tokens),
            **(self.statistics.tensors_between if is_between else self.statistics.tensors),
        }
        self.index += 1
        if delta.finish_reason is None:
            self.stream.send(response)
        else:
            self.stream.finish(response)

    def fail(self, error: RefragError) -> None:
        self.count_unread(self.num_tokens)
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
