"""Selects the chunks that are most like the question together with what stands around them; it needs no training."""

import torch

from refrag.model.policy import START_WEIGHT
from refrag.model.similarity import rank, score_neighbourhoods, similarities
from refrag.policies.base import Candidates, Policy, Selection

# C context chunks


def select_in_neighbourhood(candidates: Candidates, budget: int) -> Selection:
    """Select the chunks of the highest scores. A chunk weighs what the untrained network of `learned` would give it."""
    found = similarities(candidates.chunk_vectors, candidates.question_vectors)
    scores = score_neighbourhoods(found, torch.as_tensor(candidates.passages).to(found.device))
    return Selection(rank(scores)[:budget], (START_WEIGHT * scores).softmax(0).cpu().numpy())


POLICY = Policy("chunks like the question, in passages and beside chunks like it", "vectors", select_in_neighbourhood)
