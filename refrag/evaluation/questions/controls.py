"""The row whose chunk vectors stand in for a row's own under the control `shuffled`."""

from collections.abc import Sequence

from refrag.data.questions.row import QuestionRow
from refrag.errors import InvalidRequest


def find_control(rows: Sequence[QuestionRow], number: int) -> QuestionRow:
    """Return the nearest row that shares no passage with this one, whose vectors then tell nothing about it.

    Rows before it come first, so that adding rows leaves controls as they are, except of the first rows, whose control
    may stand behind them. Where all rows share passages with it, the one that shares the fewest is returned. Raises
    InvalidRequest if no other row has passages.
    """
    row = rows[number]
    others = [one for one in (*reversed(rows[:number]), *rows[number + 1 :]) if one.passages]
    if not others:
        raise InvalidRequest(
            f"row {row.id!r}: the control `shuffled` takes vectors of another row's passages, and no other row has "
            "any; ask two or more rows with passages"
        )
    strangers = (other for other in others if not count_shared(row, other))
    return next(strangers, None) or min(others, key=lambda other: count_shared(row, other))


def count_shared(row: QuestionRow, other: QuestionRow) -> int:
    """Return how many passages both rows have."""
    return len({passage.id for passage in row.passages} & {passage.id for passage in other.passages})
