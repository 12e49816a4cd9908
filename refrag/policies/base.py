"""The contract that every policy fulfils: a function that selects chunks to expand within a budget, and its input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from refrag.model.attention_heads import Scoring
    from refrag.model.policy import ExpansionPolicy

# C context chunks, Q question chunks, E encoder width, N attention heads

# What a policy reads of the chunks: "nothing" but their number, their "vectors" and the question's, or the decoder's
# "attention" to them, which only a decoder can tell.
Needs = Literal["nothing", "vectors", "attention"]


@dataclass(frozen=True)
class TrainedPolicy:
    """The checkpoint's trained network.

    confidence: share of the network's probability; selecting ends once the selected chunks hold it.
    """

    network: "ExpansionPolicy"
    confidence: float = 1.0


@dataclass(frozen=True)
class ChunkAttention:
    """The decoder's attention to a request's compressed chunks.

    question, null (N, C): each head's mean weight on each chunk, under the question and under one that asks nothing.
    weights (N,): of each head in the sum of all. similarities (C,): cosine of each chunk's vector with the question's.
    """

    question: np.ndarray
    null: np.ndarray
    weights: np.ndarray
    similarities: np.ndarray
    scoring: "Scoring"


@dataclass(frozen=True)
class Candidates:
    """The chunks of one request that a policy chooses from.

    passages (C,): number of the passage of each chunk. chunk_vectors: (C, E). question_vectors: (Q, E).
    trained: the checkpoint's trained policy; None if it has none. seed: for policies that draw at random.
    attention: the decoder's; None where it was not read. Where it was, there are no vectors.
    """

    passages: np.ndarray
    chunk_vectors: "Tensor"
    question_vectors: "Tensor"
    trained: TrainedPolicy | None = None
    seed: int = 0
    attention: ChunkAttention | None = None

    def __len__(self) -> int:
        return len(self.passages)


@dataclass(frozen=True, eq=False)
class Selection:
    """The numbers of the chunks to expand, and how much each chunk of the request weighs, FP32 (C,).

    A weight is 0 or more, in any unit: the server tells each passage's share, and the share that the chunks to expand
    hold is the selection's confidence.
    """

    numbers: Sequence[int]
    weights: np.ndarray


@dataclass(frozen=True)
class Policy:
    """A policy: a way to choose the chunks to expand.

    summary: what it selects, in a few words, for help texts. needs: see `Needs`.
    select: takes the candidates and the budget, which is at least 1, and less than the number of chunks if there are
        several. Returns the numbers of at most that many chunks, each once, in any order; in a `Selection` if it weighs
        the chunks.
    is_trained: true if the checkpoint must have a policy.safetensors.
    """

    summary: str
    needs: Needs
    select: Callable[[Candidates, int], Sequence[int] | Selection]
    is_trained: bool = False
