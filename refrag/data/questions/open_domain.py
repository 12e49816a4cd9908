"""Reads question files of open-domain sets, which have accepted answers but no passages.

nq-open    JSON lines with `question` and `answer`, a list
triviaqa   JSON with `Data`, a list of objects with Question, QuestionId and Answer (Value, Aliases)
popqa      tab-separated values with the columns id, question and possible_answers, a JSON list
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from refrag.data.questions.records import Record, add_unique, read_json, read_json_lines, read_table
from refrag.data.questions.row import QuestionRow
from refrag.data.questions.searched import Unsearched

Fields = tuple[str, str, tuple[str, ...]]  # id, question, answers


def read_nq_open(path: Path) -> list[Unsearched]:
    return _collect(path, read_json_lines(path), "id", _nq_open)


def read_triviaqa(path: Path) -> list[Unsearched]:
    return _collect(path, iter(read_json(path).records("Data")), "QuestionId", _triviaqa)


def read_popqa(path: Path) -> list[Unsearched]:
    return _collect(path, read_table(path, ["question", "possible_answers"]), "id", _popqa)


def _collect(
    path: Path, records: Iterator[Record], id_field: str, parse: Callable[[Record, str], Fields]
) -> list[Unsearched]:
    """Return one question for each record; one without an id gets its number."""
    source, questions = path.name.partition(".")[0], dict[str, Unsearched]()
    for number, record in enumerate(records):
        question_id, question, answers = parse(record, f"{source}-{number}")
        row = QuestionRow(question_id, source, question, answers, answerable=True, passages=())
        add_unique(questions, question_id, Unsearched(row), record, id_field)
    return list(questions.values())


def _nq_open(record: Record, default_id: str) -> Fields:
    return record.id("id", default_id), record.text("question"), _required(record, "answer")


def _triviaqa(record: Record, default_id: str) -> Fields:
    answer = record.record("Answer")
    answers = dict.fromkeys([answer.text("Value"), *answer.texts("Aliases")])
    return record.id("QuestionId", default_id), record.text("Question"), tuple(answers)


def _popqa(record: Record, default_id: str) -> Fields:
    try:
        answers = json.loads(record.text("possible_answers"))
    except ValueError:
        raise record.fault("possible_answers", "a JSON list of texts") from None
    parsed = Record({**record.values, "possible_answers": answers}, record.place)
    return record.id("id", default_id), record.text("question"), _required(parsed, "possible_answers")


def _required(record: Record, field: str) -> tuple[str, ...]:
    answers = record.texts(field)
    if not answers:
        raise record.fault(field, "a list of at least one answer")
    return answers
