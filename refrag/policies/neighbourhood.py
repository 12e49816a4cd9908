"""Selects the chunks that are most like the question together with what stands around them; it needs no training."""

import torch

from refrag.model.similarity import rank, score_neighbourhoods, similarities
from refrag.policies.base import Candidates, Policy, Selection

# C context chunks


def select_in_neighbourhood(candidates: Candidates, budget: int) -> Selection:
    """Select the chunks of the highest scores. A chunk weighs its own cosine, and nothing where that is below 0."""
    found = similarities(candidates.chunk_vectors, candidates.question_vectors)
    scores = score_neighbourhoods(found, torch.as_tensor(candidates.passages).to(found.device))
    return Selection(rank(scores)[:budget], found.clamp_min(0).cpu().numpy())


POLICY = Policy("chunks like the question, in passages and beside chunks like it", "vectors", select_in_neighbourhood)
