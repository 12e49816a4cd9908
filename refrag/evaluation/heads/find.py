"""Finds heads that look at the evidence, and how their scores are best put together, on rows with known evidence.

A head is kept if it finds the evidence more often than chance in both halves of the rows, by three standard errors. The
best of these are summed; what neighbours, passage and similarity add is tried out on the same rows.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from refrag.errors import InvalidRequest
from refrag.evaluation.heads.readings import SHARES, Reading
from refrag.model.attention_heads import AttentionHeads, Scoring
from refrag.model.similarity import rank
from refrag.policies.attention import combine

# N heads, C chunks

# Of the chunks, in the ranking of single heads.
SHARE = 0.1
MOST_HEADS = 16
STANDARD_ERRORS = 3.0
FEWEST_ROWS = 20
NEIGHBOURS = (0.0, 0.25, 0.5, 1.0)
PASSAGE = (0.0, 0.25, 0.5)
SIMILARITY = (0.0, 0.5, 0.7, 0.8, 0.9)


def find_heads(readings: Sequence[Reading], heads: AttentionHeads, digest: str) -> AttentionHeads:
    """Return the best of the heads that were read, with the scoring that suits them.

    Raises InvalidRequest for too few rows, or if no head finds the evidence.
    """
    if len(readings) < FEWEST_ROWS:
        raise InvalidRequest(
            f"{len(readings)} rows have known evidence and enough chunks; at least {FEWEST_ROWS} are needed, and some "
            "hundreds are better; raise num_rows, or name another file"
        )
    numbers = rank_heads(readings)[:MOST_HEADS]
    if not len(numbers):
        raise InvalidRequest(
            "no head finds the evidence more often than chance; the decoder may never have been trained to read "
            "compressed chunks; train it, or name another policy"
        )
    numbers.sort()
    chosen = tuple(heads.heads[number] for number in numbers)
    return AttentionHeads(chosen, (1.0,) * len(chosen), fit_scoring(readings, numbers), digest)


def rank_heads(readings: Sequence[Reading]) -> np.ndarray:
    """Return the numbers of the heads that beat chance in both halves of the rows, the best first."""
    hits = np.stack([find_by_head(reading) for reading in readings])  # (rows, N)
    chances = np.array([chance_of(reading) for reading in readings])  # (rows,)
    kept = np.ones(hits.shape[1], bool)
    for half in (slice(0, None, 2), slice(1, None, 2)):
        chance = chances[half]
        error = math.sqrt((chance * (1 - chance)).sum()) / len(chance)
        kept &= hits[half].mean(0) >= chance.mean() + STANDARD_ERRORS * error
    order = np.argsort(-hits.mean(0), kind="stable")
    ranked: np.ndarray = order[kept[order]]
    return ranked


def chance_of(reading: Reading) -> float:
    """Return how often as many chunks, drawn at random, would hold some of the evidence, which is often several."""
    num_chunks, budget = len(reading.passages), reading.budget(SHARE)
    return 1 - math.comb(num_chunks - len(reading.evidence), budget) / math.comb(num_chunks, budget)


def find_by_head(reading: Reading) -> np.ndarray:
    """Return for each head whether its own best chunks hold some of the evidence.  (N,)"""
    best = reading.scores[:, reading.evidence].max(1, keepdims=True)
    # Those that score alike count too: a head that sees no chunk gives all the same score, and finds nothing.
    found: np.ndarray = (reading.scores >= best).sum(1) <= reading.budget(SHARE)
    return found


def fit_scoring(readings: Sequence[Reading], numbers: np.ndarray) -> Scoring:
    """Return the scoring by which these heads find the evidence most often, a mean over the shares."""
    tried = [
        Scoring(neighbours=n, passage=p, similarity=s) for n, p, s in itertools.product(NEIGHBOURS, PASSAGE, SIMILARITY)
    ]
    return max(tried, key=lambda scoring: sum(recall(readings, numbers, scoring, share) for share in SHARES))


def recall(readings: Sequence[Reading], numbers: np.ndarray, scoring: Scoring, share: float) -> float:
    """Return the share of the rows in which the heads' choice holds some of the evidence."""
    return float(np.mean(finds(readings, numbers, scoring, share)))


def finds(readings: Sequence[Reading], numbers: np.ndarray, scoring: Scoring, share: float) -> np.ndarray:
    """Return for each row whether the heads' choice holds some of the evidence.  BOOL (rows,)"""
    return np.array([_holds_evidence(reading, choose(reading, numbers, scoring, share)) for reading in readings])


def choose(reading: Reading, numbers: np.ndarray, scoring: Scoring, share: float) -> list[int]:
    scores = combine(
        reading.scores[numbers].astype(np.float64),
        np.ones(len(numbers)),
        reading.passages,
        reading.similarities,
        scoring,
    )
    return rank(scores)[: reading.budget(share)]


def finds_by_policy(readings: Sequence[Reading], policy: str, share: float) -> np.ndarray:
    """Return for each row whether another policy's choice holds some of the evidence.  BOOL (rows,)"""
    return np.array([_holds_evidence(reading, reading.picks[policy, share]) for reading in readings])


def _holds_evidence(reading: Reading, chosen: Sequence[int]) -> bool:
    return not set(reading.evidence).isdisjoint(chosen)
