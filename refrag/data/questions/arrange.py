"""Arranges the passages of a row as every condition reads them: the first n, in an order drawn from the row's id."""

import random
from collections.abc import Sequence
from dataclasses import replace

from refrag.data.questions.row import QuestionRow
from refrag.errors import InvalidRequest
from refrag.retrieval.bm25 import WEAK_POOL, Strength


def arrange(
    row: QuestionRow,
    num_passages: int | None = None,
    seed: int = 0,
    shuffle: bool = True,
    keep_gold: bool = False,
    strength: Strength = "strong",
) -> QuestionRow:
    """Return the row with `num_passages` of those found, or with all if None, and `gold` as positions among them.

    Parts of a document stay in its order, and are never drawn by a weak retriever.
    keep_gold: passages with evidence that were not among the first take the places of the last that are.
    strength: "strong" takes the first passages, "weak" draws them from the first 50, as `Retriever.retrieve` does.
    """
    if num_passages is not None and num_passages < 1:
        raise InvalidRequest(f"num_passages is {num_passages}; it must be at least 1")
    rng = random.Random(f"{seed} {row.id}")
    found = len(row.passages) if row.num_found is None else row.num_found
    count = found if num_passages is None else min(num_passages, found)
    chosen = _retrieved(row, found, count, rng, strength)
    if keep_gold:
        chosen = _with_gold(chosen, row.gold or ())
    if row.keeps_order:
        chosen.sort()
    elif shuffle:
        rng.shuffle(chosen)
    return _pick(row, chosen)


def only_gold(row: QuestionRow) -> QuestionRow:
    """Return the row with nothing but the passages that hold the evidence, in their order."""
    return _pick(row, sorted(row.gold or ()))


def _retrieved(row: QuestionRow, found: int, count: int, rng: random.Random, strength: Strength) -> list[int]:
    if strength == "strong" or row.keeps_order:
        return list(range(count))
    pool = range(min(max(WEAK_POOL, count), found))
    return rng.sample(pool, count)


def _with_gold(chosen: Sequence[int], gold: Sequence[int]) -> list[int]:
    """Return as many positions, the missing evidence in the places of the last ones that hold none."""
    kept, missing = list(chosen), [one for one in gold if one not in chosen]
    others = [one for one in chosen if one not in gold]
    for one, other in zip(missing, reversed(others), strict=False):
        kept[kept.index(other)] = one
    return kept


def _pick(row: QuestionRow, chosen: Sequence[int]) -> QuestionRow:
    gold = None if row.gold is None else tuple(place for place, one in enumerate(chosen) if one in row.gold)
    return replace(row, passages=tuple(row.passages[one] for one in chosen), gold=gold, num_found=None)
