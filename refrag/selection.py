"""Which chunks to expand: the selection policies, which spend a budget."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from refrag.budget import expands_all, expansion_budget
from refrag.chunking import Chunk
from refrag.model.policy import ExpansionPolicy, pick_in_turn
from refrag.request import ExpansionOptions

# C context chunks, Q question chunks, E encoder width


def select_chunks(
    options: ExpansionOptions,
    chunks: Sequence[Chunk],
    network: ExpansionPolicy,
    chunk_vectors: Tensor,
    question_vectors: Tensor,
    confidence: float = 1.0,
) -> list[int]:
    """Numbers of the chunks to expand, in ascending order; `confidence` is that of the learned policy.

    chunk_vectors: (C, E). question_vectors: (Q, E).
    """
    if expands_all(options, len(chunks)):
        return list(range(len(chunks)))
    budget = expansion_budget(options.expand_fraction, len(chunks))
    if options.policy == "none" or budget == 0:
        return []
    if options.policy == "random":
        return sorted(random.Random(options.seed).sample(range(len(chunks)), budget))
    logits = score_chunks(chunks, network, chunk_vectors, question_vectors)
    return sorted(pick_in_turn(logits, budget, confidence))


@torch.inference_mode()
def score_chunks(
    chunks: Sequence[Chunk], network: ExpansionPolicy, chunk_vectors: Tensor, question_vectors: Tensor
) -> Tensor:
    """The policy network's logit for each chunk.  (C, E), (Q, E) -> (C,)"""
    passages = torch.tensor([[chunk.passage for chunk in chunks]])
    question_mask = torch.ones(1, len(question_vectors), dtype=torch.bool)
    return network(chunk_vectors.unsqueeze(0), passages, question_vectors.unsqueeze(0), question_mask)[0]
