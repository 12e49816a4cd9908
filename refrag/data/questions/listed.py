"""Reads the form `rows`: JSON lines that list the passages retrieved for each question, beside a file of passages.

    {"id": "q1", "question": "…", "answers": ["…"], "passages": ["p7", "p2"], "gold": [0]}

Optional: source, task, answerable, gold (positions in `passages`), keeps_order, and history, a list of
{"role": "user", "text": "…"}, whose roles alternate and end with the assistant's. All other fields go into `extra`.
"""

from pathlib import Path

from refrag.data.questions.passages import Pool
from refrag.data.questions.records import Record, add_unique, read_json_lines
from refrag.data.questions.row import QuestionRow, SourcePassage
from refrag.errors import InvalidRequest
from refrag.history import Turn, pair_turns

KNOWN = {"id", "source", "question", "answers", "answerable", "passages", "gold", "history", "task", "keeps_order"}
# Its passages are the parts of one document.
SUMMARY = "summary"


def read_listed(path: Path, pool: Pool) -> list[QuestionRow]:
    """Return the rows in the file's order; raise InvalidRequest at the first fault."""
    rows: dict[str, QuestionRow] = {}
    for record in read_json_lines(path):
        row = _as_row(record, pool, path.name.partition(".")[0])
        add_unique(rows, row.id, row, record, "id")
    return list(rows.values())


def _as_row(record: Record, pool: Pool, source: str) -> QuestionRow:
    passages, task = _passages(record, pool), record.text_or_empty("task") or "open"
    return QuestionRow(
        id=record.text("id"),
        source=record.text_or_empty("source") or source,
        question=record.text("question"),
        answers=record.texts("answers"),
        # An empty list says that nothing answers; without the list nobody knows.
        answerable=record.flag("answerable", record.values.get("answers") != []),
        passages=passages,
        gold=_gold(record, len(passages)),
        history=_history(record),
        task=task,
        extra={field: value for field, value in record.values.items() if field not in KNOWN},
        keeps_order=record.flag("keeps_order", task == SUMMARY),
    )


def _passages(record: Record, pool: Pool) -> tuple[SourcePassage, ...]:
    ids = record.values.get("passages")
    if not isinstance(ids, list):
        raise record.fault("passages", "a list of ids of passages")
    for passage_id in ids:
        if not isinstance(passage_id, str) or passage_id not in pool:
            raise InvalidRequest(
                f"{record.place}, field passages: {passage_id!r} is no passage; give ids of the {len(pool)} in the "
                "passage file"
            )
    if len(set(ids)) < len(ids):
        raise record.fault("passages", "each passage once")
    return tuple(pool[passage_id] for passage_id in ids)


def _gold(record: Record, num_passages: int) -> tuple[int, ...] | None:
    gold = record.values.get("gold")
    if gold is None:
        return None
    is_list = isinstance(gold, list) and all(type(one) is int and 0 <= one < num_passages for one in gold)
    if not is_list or len(set(gold)) < len(gold):
        raise record.fault("gold", f"positions in `passages`, from 0 to {num_passages - 1}, each once, or null")
    return tuple(gold)


def _history(record: Record) -> tuple[tuple[str, str], ...]:
    """Return the turns; raise InvalidRequest unless they alternate as those of a request."""
    records = record.records("history") if record.has("history") else []
    turns = [Turn(turn.text("role"), turn.text("text")) for turn in records]
    try:
        pair_turns(turns)
    except InvalidRequest:
        raise record.fault(
            "history", "turns of the user and the assistant that alternate, the assistant's last"
        ) from None
    return tuple((turn.role, turn.content) for turn in turns)
