"""Selects the chunks that are most like the question: the cosine of their vectors, which needs no training."""

from torch import Tensor
from torch.nn import functional

from refrag.policies.base import Candidates, Policy, Selection

# C context chunks, Q question chunks, E encoder width


def select_most_similar(candidates: Candidates, budget: int) -> Selection:
    """Select the nearest chunks. A chunk weighs its cosine, and nothing where that is below 0."""
    found = similarities(candidates.chunk_vectors, candidates.question_vectors)
    return Selection(_rank(found)[:budget], found.clamp_min(0).cpu().numpy())


def rank_by_similarity(chunk_vectors: Tensor, question_vectors: Tensor) -> list[int]:
    """Return the numbers of the chunks, the one nearest to the question by cosine first.  (C, E), (Q, E) -> C"""
    return _rank(similarities(chunk_vectors, question_vectors))


def similarities(chunk_vectors: Tensor, question_vectors: Tensor) -> Tensor:
    """Return the cosine of each chunk's vector with the question's.  (C, E), (Q, E) -> (C,)

    A question of several chunks counts as the mean of their directions.
    """
    question = functional.normalize(question_vectors, dim=-1).mean(0)
    # Row by row, so that chunks of the same text tie, and the first is taken: a matrix product may round them apart.
    return (functional.normalize(chunk_vectors, dim=-1) * question).sum(-1)


def _rank(similarities: Tensor) -> list[int]:
    return similarities.argsort(descending=True, stable=True).tolist()


POLICY = Policy("chunks whose vectors are most like the question's", "vectors", select_most_similar)
