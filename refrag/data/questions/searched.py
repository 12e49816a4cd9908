"""Questions of forms that list no passages, and the search of their pool by BM25."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from refrag.data.questions.row import QuestionRow, SourcePassage
from refrag.retrieval.bm25 import Retriever


@dataclass(frozen=True)
class Unsearched:
    """A row still without passages.

    needed: ids of the passages that the row must have: those that hold the evidence, or that it is asked about.
    """

    row: QuestionRow
    needed: tuple[str, ...] = ()


def search(questions: Sequence[Unsearched], pool: Sequence[SourcePassage], depth: int) -> list[QuestionRow]:
    """Return the rows with the best `depth` passages of the pool, as `Retriever.rank` orders them.

    A needed one that is not found stands last.
    """
    retriever = Retriever([passage.content for passage in pool])
    numbers = {passage.id: number for number, passage in enumerate(pool)}
    return [_fill(question, pool, retriever.rank(question.row.question, depth), numbers) for question in questions]


def _fill(
    question: Unsearched, pool: Sequence[SourcePassage], found: Sequence[int], numbers: dict[str, int]
) -> QuestionRow:
    needed = [numbers[passage_id] for passage_id in question.needed]
    order = list(dict.fromkeys(itertools.chain(found, needed)))
    gold = None if question.row.gold is None else tuple(order.index(needed[one]) for one in question.row.gold)
    return replace(question.row, passages=tuple(pool[number] for number in order), gold=gold, num_found=len(found))
