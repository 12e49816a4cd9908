"""Selects the chunks that are most like the question: the cosine of their vectors, which needs no training."""

from refrag.model.similarity import rank, similarities
from refrag.policies.base import Candidates, Policy, Selection


def select_most_similar(candidates: Candidates, budget: int) -> Selection:
    """Select the nearest chunks. A chunk weighs its cosine, and nothing where that is below 0."""
    found = similarities(candidates.chunk_vectors, candidates.question_vectors)
    return Selection(rank(found)[:budget], found.clamp_min(0).cpu().numpy())


POLICY = Policy("chunks whose vectors are most like the question's", "vectors", select_most_similar)
