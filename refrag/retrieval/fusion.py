"""Merges rankings by reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009)."""

from collections import defaultdict
from collections.abc import Sequence

# As in the paper: how little the first ranks count for more than the next.
RANK_OFFSET = 60


def fuse_rankings(rankings: Sequence[Sequence[str]]) -> list[tuple[str, float]]:
    """Return all ids with their scores, the best first; equal scores in the order of the ids.

    An id's score is the sum of 1 / (60 + rank) over the rankings that have it, ranks counted from 1.
    """
    scores: dict[str, float] = defaultdict(float)
    for ranking in rankings:
        for rank, each in enumerate(ranking, start=1):
            scores[each] += 1 / (RANK_OFFSET + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))
