"""A choice of chunks to expand that no server offers: an oracle that knows the answer."""

from itertools import filterfalse

import numpy as np

from refrag.data.questions.evidence import find_answer, is_verdict
from refrag.data.questions.row import QuestionRow
from refrag.data.spans import Spans

# C chunks


def choose_by_oracle(row: QuestionRow, spans: Spans, places: np.ndarray) -> list[int]:
    """Return the chunks with the answer, as `find_answer_chunks` orders them.

    Where its words stand nowhere, as those of a sentence, these are all chunks of the passages with the evidence.
    """
    return find_answer_chunks(row, spans, places) or np.flatnonzero(np.isin(places, row.gold or ())).tolist()


def find_answer_chunks(row: QuestionRow, spans: Spans, places: np.ndarray) -> list[int]:
    """Return the numbers of the chunks with a part of an accepted answer, those of the evidence first.

    places (C,): position in the row of each chunk's passage; the last chunks of a passage may have been cut off.
    """
    found: set[tuple[bool, int]] = set()
    for place, passage in enumerate(row.passages):
        numbers = np.flatnonzero(places == place).tolist()
        for covered in _covered(passage.content, row.answers, spans):
            found |= {(place not in (row.gold or ()), numbers[one]) for one in covered if one < len(numbers)}
    return [number for _, number in sorted(found)]


def _covered(text: str, answers: tuple[str, ...], spans: Spans) -> list[list[int]]:
    """Return for each place where an answer stands the chunks of the passage that it covers."""
    words = filterfalse(is_verdict, answers)
    return [spans.covered_chunks(text, *place) for answer in words for place in find_answer(text, answer)]
