"""Reads what an answer rests on, as the model `decoder` is told it: where the chunks come from, and what they weigh."""

from dataclasses import dataclass

import numpy as np

from refrag.citations import Sources
from refrag.errors import InvalidRequest
from refrag.serving.tensors import Tensors, check_range, integer

# C chunks

# Inputs that tell where a request's chunks come from, and what they weigh.
INPUTS = ("chunk_spans", "chunk_weights", "num_passages")
# Of responses before the last, and of a request that does not tell where its chunks come from.
NO_CITATIONS = {"citations": np.zeros((0, 3), np.int32), "passage_weights": np.zeros(0, np.float32)}
# No request can hold more, and each one takes memory for its weight and its score.
MOST_PASSAGES = 2**22


@dataclass(frozen=True, eq=False)
class Evidence:
    """The sources of a request's chunks, None if it does not tell them, and the chunks' weights, FP32 (C,)."""

    sources: Sources | None
    weights: np.ndarray

    def tensors(self, expanded: np.ndarray) -> dict[str, np.ndarray]:
        """Return the tensors of the last response, for a prompt with these chunks expanded."""
        if self.sources is None:
            return NO_CITATIONS
        return {"citations": self.sources.cite(expanded), "passage_weights": self.sources.share(self.weights)}


def check_passages(name: str, numbers: np.ndarray) -> None:
    """Raise InvalidRequest for what cannot be numbers of a request's passages."""
    check_range(name, numbers, MOST_PASSAGES, "numbers of passages")


def read_evidence(inputs: Tensors, expanded: np.ndarray) -> Evidence:
    """Return copies of what a request tells; raise InvalidRequest for a contradiction.

    expanded: numbers of the expanded chunks, which need no rows of chunk_spans if the request has none at all.
    """
    if "chunk_spans" not in inputs:
        return Evidence(None, np.zeros(0, np.float32))
    spans, weights = np.array(inputs["chunk_spans"]), np.array(inputs.get("chunk_weights", np.zeros(0, np.float32)))
    num_passages = integer(inputs, "num_passages") or 0
    if not 0 <= num_passages <= MOST_PASSAGES:
        raise InvalidRequest(f"num_passages is {num_passages}; allowed is 0 to {MOST_PASSAGES}")
    if expanded.size and not 0 <= expanded.min() <= expanded.max() < len(spans):
        raise InvalidRequest(
            f"expanded_chunks ranges from {expanded.min()} to {expanded.max()}; chunk_spans has {len(spans)} rows"
        )
    if len(weights) != len(spans):
        raise InvalidRequest(f"chunk_weights has {len(weights)} weights for the {len(spans)} rows of chunk_spans")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise InvalidRequest("chunk_weights must be finite, and 0 or more")
    if spans.min(initial=0) < 0:
        raise InvalidRequest("chunk_spans holds negative numbers; a row is a passage, its first character, and the end")
    return Evidence(Sources(spans, num_passages), weights)
