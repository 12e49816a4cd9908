"""Which chunks to expand: the selection policies, which spend a budget."""

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from refrag.model.policy import ExpansionPolicy, pick_in_turn
from refrag.policies.budget import expands_all, expansion_budget
from refrag.request import ExpansionOptions

# C context chunks, Q question chunks, E encoder width


def select_chunks(
    options: ExpansionOptions,
    passages: Sequence[int] | np.ndarray,
    network: ExpansionPolicy,
    chunk_vectors: Tensor,
    question_vectors: Tensor,
    confidence: float = 1.0,
) -> list[int]:
    """Numbers of the chunks to expand, in ascending order; `confidence` is that of the learned policy.

    passages: that of each chunk, C of them. chunk_vectors: (C, E). question_vectors: (Q, E).
    """
    if expands_all(options, len(passages)):
        return list(range(len(passages)))
    budget = expansion_budget(options.expand_fraction, len(passages))
    if options.policy == "none" or budget == 0:
        return []
    if options.policy == "random":
        return sorted(random.Random(options.seed).sample(range(len(passages)), budget))
    logits = score_chunks(passages, network, chunk_vectors, question_vectors)
    return sorted(pick_in_turn(logits, budget, confidence))


@torch.inference_mode()
def score_chunks(
    passages: Sequence[int] | np.ndarray, network: ExpansionPolicy, chunk_vectors: Tensor, question_vectors: Tensor
) -> Tensor:
    """The policy network's logit for each chunk.  C passages, (C, E), (Q, E) -> (C,)"""
    question_mask = torch.ones(1, len(question_vectors), dtype=torch.bool)
    numbers = torch.as_tensor(passages).long().unsqueeze(0)
    return network(chunk_vectors.unsqueeze(0), numbers, question_vectors.unsqueeze(0), question_mask)[0]
