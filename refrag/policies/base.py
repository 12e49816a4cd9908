"""What a policy is: a function that picks chunks to expand within a budget, and what it must be given for that."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from refrag.model.policy import ExpansionPolicy

# C context chunks, Q question chunks, E encoder width

# What a policy reads of the context: nothing but how many chunks there are, their vectors and the question's, or how
# the decoder attends to them, which only the decoder can tell.
Needs = Literal["nothing", "vectors", "attention"]


@dataclass(frozen=True)
class TrainedPolicy:
    """The checkpoint's network, and the share of its probability at which its picks may stop short of the budget."""

    network: "ExpansionPolicy"
    confidence: float = 1.0


@dataclass(frozen=True)
class Candidates:
    """The chunks of one request to choose among.

    passages: the passage of each chunk.  (C,)   chunk_vectors: (C, E).   question_vectors: (Q, E).
    trained: the checkpoint's trained policy, None where it has none.   seed: for policies that draw at random.
    """

    passages: np.ndarray
    chunk_vectors: "Tensor"
    question_vectors: "Tensor"
    trained: TrainedPolicy | None = None
    seed: int = 0

    def __len__(self) -> int:
        return len(self.passages)


@dataclass(frozen=True)
class Policy:
    """One way to choose.

    summary: what it picks, in a few words, for help texts. needs: see `Needs`. is_trained: whether it needs
    policy.safetensors in the checkpoint.
    select: returns the numbers of different chunks, in any order, no more than the budget, which is at least 1 and less
    than there are chunks.
    """

    summary: str
    needs: Needs
    select: Callable[[Candidates, int], Sequence[int]]
    is_trained: bool = False
