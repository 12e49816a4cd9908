"""Choices of chunks to expand that no server offers: a baseline by similarity, and an oracle that knows the answer."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from refrag.data.questions.row import QuestionRow

# C chunks, Q question chunks, E encoder width


def rank_by_similarity(vectors: Tensor, question_vectors: Tensor) -> list[int]:
    """Return the numbers of the chunks, the one nearest to the question by cosine first.  (C, E), (Q, E) -> C"""
    question = torch.nn.functional.normalize(question_vectors.flatten(1), dim=-1).mean(0)
    similarities = torch.nn.functional.normalize(vectors.flatten(1), dim=-1) @ question  # (C, E) -> (C,)
    return similarities.argsort(descending=True, stable=True).tolist()


def find_answer_chunks(row: QuestionRow, texts: Sequence[str], places: np.ndarray) -> list[int]:
    """Return the numbers of the chunks with a part of an accepted answer, those of the evidence first.

    texts: of each chunk. places (C,): position of each chunk's passage in the row.
    """
    found = []
    for place, group in itertools.groupby(range(len(texts)), key=lambda number: int(places[number])):
        numbers = list(group)
        holders = _holders([texts[number] for number in numbers], row.answers)
        found += [(place not in (row.gold or ()), numbers[holder]) for holder in holders]
    return [number for _, number in sorted(found)]


def _holders(texts: Sequence[str], answers: Sequence[str]) -> list[int]:
    """Return which of the consecutive texts hold a part of an answer, whatever its case."""
    whole, ends = "".join(texts).lower(), list(itertools.accumulate(map(len, texts)))
    holders: set[int] = set()
    for answer in filter(None, (answer.lower().strip() for answer in answers)):
        start = whole.find(answer)
        while start >= 0:
            stop = start + len(answer)
            holders |= {one for one, end in enumerate(ends) if end > start and end - len(texts[one]) < stop}
            start = whole.find(answer, stop)
    return sorted(holders)
