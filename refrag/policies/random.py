"""Selects chunks at random: the baseline that every other policy must beat."""

import random

from refrag.policies.base import Candidates, Policy


def select_at_random(candidates: Candidates, budget: int) -> list[int]:
    """Draw as many chunks as the budget allows; the same seed draws the same chunks."""
    return random.Random(candidates.seed).sample(range(len(candidates)), budget)


POLICY = Policy("chunks drawn at random, by the request's seed", "nothing", select_at_random)
