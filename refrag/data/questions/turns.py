"""The earlier turns of a row as a client sends them, for training and evaluation alike."""

from refrag.data.questions.row import QuestionRow
from refrag.history import Pair, Turn, pair_turns


def as_turns(row: QuestionRow) -> list[Turn]:
    return [Turn(role, text) for role, text in row.history]


def earlier_pairs(row: QuestionRow) -> list[Pair]:
    return pair_turns(as_turns(row))
