"""Selects the chunks that the question makes the decoder look at, beyond what it looks at whatever is asked.

The decoder's attention to the compressed chunks is read twice: under the question, and under one that asks nothing.
Chunks that draw attention either way, because of their place or as sinks, have the same share in both and cancel. So
every head gives each chunk the logarithm of how much its share has grown. After "in-context re-ranking" (Chen et al.,
2024), which reads tokens, subtracts, and sums over all heads; ours reads slots, of which there is one for a chunk.
"""

import numpy as np
import torch
from torch import Tensor

from refrag.model.attention_heads import Scoring
from refrag.model.similarity import LEAST_DEVIATION, rank, spread, standardised
from refrag.policies.base import Candidates, ChunkAttention, Policy, Selection

# N attention heads, C context chunks

# A share this small, of what each chunk would have if all had the same, is as good as none.
LEAST_SHARE = 0.1
# Scores of a head beyond so many deviations count as that: no head decides alone.
MOST_DEVIATIONS = 4.0
# Of weights whose shares are taken: a head that sees no chunk has no share to give.
LEAST_SUM = 1e-30
# Deviations of a normal distribution in its median absolute deviation.
DEVIATIONS_IN_MEDIAN = 1.4826


def select_attended(candidates: Candidates, budget: int) -> Selection:
    """Select the chunks of the highest scores. A chunk weighs its share of the attention under the question."""
    attention = candidates.attention
    assert attention is not None, "select_chunks refuses a request that needs attention if it has not been read"
    ranked = rank(score_attended(attention, candidates.passages))
    return Selection(ranked[:budget], shares_of_chunks(attention).astype(np.float32))


def score_attended(attention: ChunkAttention, passages: np.ndarray) -> Tensor:
    """Return each chunk's score, by attention and by similarity.  (C,)"""
    scores = deviations(attention.question, attention.null)
    return combine(scores, attention.weights, passages, attention.similarities, attention.scoring)


def combine(
    scores: np.ndarray, weights: np.ndarray, passages: np.ndarray, similarities: np.ndarray, scoring: Scoring
) -> Tensor:
    """Return each chunk's score, of those that each head gives it.  (N, C), (N,), (C,), (C,) -> (C,)"""
    limited = torch.from_numpy(weights @ np.clip(scores, -MOST_DEVIATIONS, MOST_DEVIATIONS))
    alike = torch.from_numpy(similarities.astype(np.float64))
    mixed = (1 - scoring.similarity) * standardised(limited) + scoring.similarity * standardised(alike)
    return spread(mixed, torch.from_numpy(passages), scoring.neighbours, scoring.passage)


def shares_of_chunks(attention: ChunkAttention) -> np.ndarray:
    """Return each chunk's share of the question's attention to all, a mean over the heads.  (C,)"""
    seen = np.average(_shares(attention.question), 0, attention.weights)
    shares: np.ndarray = seen / max(seen.sum(), LEAST_SUM)
    return shares


def growth(question: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Return by how much the question makes each chunk's share grow, as a logarithm.  (N, C)"""
    least = LEAST_SHARE / question.shape[1]
    grown: np.ndarray = np.log(_shares(question) + least) - np.log(_shares(null) + least)
    return grown


def deviations(question: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Return by how much each chunk's share grows, in each head's deviations from its median.  (N, C), (N, C) -> (N, C)

    A chunk that a head sees under neither, being beyond its window, counts for nothing there: it is at the median.
    """
    grown, sees = growth(question, null), (question > 0) | (null > 0)
    scores = np.zeros_like(grown)
    for head in np.flatnonzero(sees.any(1)):
        seen = grown[head, sees[head]]
        centred = seen - np.median(seen)
        deviation = DEVIATIONS_IN_MEDIAN * np.median(np.abs(centred))
        scores[head, sees[head]] = centred / max(deviation, LEAST_DEVIATION)
    return scores


def _shares(weights: np.ndarray) -> np.ndarray:
    weights = weights.astype(np.float64)
    shares: np.ndarray = weights / np.maximum(weights.sum(1, keepdims=True), LEAST_SUM)
    return shares


POLICY = Policy("chunks that the question makes the decoder look at", "attention", select_attended)
