"""Selects the chunks that are most like the question together with what stands around them; it needs no training.

A chunk often says "it" of what the one before it names, and an answer may stand beside the words of the question, not
among them. So a chunk's cosine counts with its neighbours', and with that of the likest chunk of its passage.
"""

import numpy as np

from refrag.policies.base import Candidates, Policy, Selection
from refrag.policies.similarity import similarities

# C context chunks

# How much the mean of the chunks beside it, and the best of its passage, add to a chunk's own: what `refrag heads find`
# found for the demo's pair, on validation rows.
NEIGHBOURS, PASSAGE = 0.5, 0.25
# Scores that differ less than so do not differ.
LEAST_DEVIATION = 1e-6


def select_in_neighbourhood(candidates: Candidates, budget: int) -> Selection:
    """Select the chunks of the highest scores. A chunk weighs its own cosine, and nothing where that is below 0."""
    found = similarities(candidates.chunk_vectors, candidates.question_vectors).cpu().numpy()
    scores = spread(standardised(found), candidates.passages, NEIGHBOURS, PASSAGE)
    return Selection(rank(scores)[:budget], found.clip(min=0))


def rank(scores: np.ndarray) -> list[int]:
    """Return the numbers of the chunks, the highest score first; of equal ones the first chunk.  (C,) -> C"""
    numbers: list[int] = np.argsort(-scores, kind="stable").tolist()
    return numbers


def spread(scores: np.ndarray, passages: np.ndarray, neighbours: float, passage: float) -> np.ndarray:
    """Return the scores with a part of those of their neighbours in the passage, and of the passage's best.  (C,)

    neighbours: share of the mean score beside a chunk, 0 where it has none. passage: share of the best one.
    """
    same = passages[1:] == passages[:-1]
    left, right = np.concatenate([[False], same]), np.concatenate([same, [False]])
    sums = np.where(left, np.roll(scores, 1), 0.0) + np.where(right, np.roll(scores, -1), 0.0)
    smoothed = scores + neighbours * sums / np.maximum(1, left.astype(int) + right)
    numbers = np.unique(passages, return_inverse=True)[1]
    best = np.full(len(passages), -np.inf)
    np.maximum.at(best, numbers, smoothed)
    scored: np.ndarray = smoothed + passage * best[numbers]
    return scored


def standardised(scores: np.ndarray) -> np.ndarray:
    """Return the scores with mean 0 and deviation 1, or all 0 if they are alike.  (C,)"""
    scaled: np.ndarray = (scores - scores.mean()) / max(scores.std(), LEAST_DEVIATION)
    return scaled


POLICY = Policy("chunks like the question, in passages and beside chunks like it", "vectors", select_in_neighbourhood)
