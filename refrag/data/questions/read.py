"""Reads questions from any of the forms, and draws a sub-sample by seed.

rows       JSON lines that list each question's passages      refrag.data.questions.listed
squad      SQuAD's JSON, version 1.1 or 2                      refrag.data.questions.squad
beir       a folder of corpus, queries and judgements          refrag.data.questions.beir
nq-open, triviaqa, popqa                                       refrag.data.questions.open_domain

All but `rows` have no passages for a question: BM25 finds them.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar, get_args

from refrag.data.questions.beir import CORPUS, read_beir
from refrag.data.questions.listed import read_listed
from refrag.data.questions.open_domain import read_nq_open, read_popqa, read_triviaqa
from refrag.data.questions.passages import find_pool, read_pool
from refrag.data.questions.records import Record, read_json, read_json_lines, read_lines
from refrag.data.questions.row import QuestionRow, SourcePassage
from refrag.data.questions.searched import Unsearched, search
from refrag.data.questions.squad import read_squad
from refrag.errors import InvalidRequest

Form = Literal["rows", "squad", "beir", "nq-open", "triviaqa", "popqa"]
FORMS: tuple[Form, ...] = get_args(Form)
OPEN_DOMAIN: dict[Form, Callable[[Path], list[Unsearched]]] = {
    "nq-open": read_nq_open,
    "triviaqa": read_triviaqa,
    "popqa": read_popqa,
}
# Forms whose questions come with the passages to search.
WITH_PASSAGES = ("squad", "beir")
# As many as a weak retriever draws from.
DEFAULT_DEPTH = 50

T = TypeVar("T")


def read_questions(
    path: Path,
    form: Form | None = None,
    passages: Path | None = None,
    num_rows: int | None = None,
    seed: int = 0,
    depth: int = DEFAULT_DEPTH,
    split: str | None = None,
) -> list[QuestionRow]:
    """Return the questions of a file, or of a folder of the form `beir`.

    form: detected if None. passages: file of the passages; if None it is looked for beside the questions, for the forms
        that need one.
    num_rows: rows to draw by the seed; None for all. A larger number gives the same rows and others.
    depth: passages to search for each question, for the forms that list none; those with the evidence are added.
    split: file of judgements, for `beir`.
    Raises InvalidRequest for the first fault in any of the files, and then returns nothing.
    """
    form = form or detect_form(path)
    _refuse_unread(form, passages, split)
    if form == "rows":
        return draw_rows(read_listed(path, read_pool(passages or find_pool(path))), num_rows, seed)
    questions, pool = _read_unsearched(path, form, passages, split)
    return search(draw_rows(questions, num_rows, seed), pool, depth)


def detect_form(path: Path) -> Form:
    """Return the form of a file or folder, or raise InvalidRequest if it has none of them."""
    if path.is_dir():
        form = _form_of_folder(path)
    elif path.suffix == ".tsv" or path.name.endswith(".tsv.gz"):
        form = _form_of_table(path)
    else:
        form = _form_of_record(_first_record(path))
    if form is None:
        raise InvalidRequest(f"{path} has none of the forms {', '.join(FORMS)}; name the form, or convert the file")
    return form


def draw_rows(rows: Sequence[T], num_rows: int | None, seed: int) -> list[T]:
    """Return rows drawn at random in the drawn order, which begins alike for any number of them; all if None."""
    if num_rows is None:
        return list(rows)
    if num_rows < 1:
        raise InvalidRequest(f"num_rows is {num_rows}; it must be at least 1")
    order = list(range(len(rows)))
    random.Random(f"rows {seed}").shuffle(order)
    return [rows[number] for number in order[:num_rows]]


def _refuse_unread(form: Form, passages: Path | None, split: str | None) -> None:
    """Raise InvalidRequest for a file that the form would not read, so that none is taken for read."""
    if passages is not None and form in WITH_PASSAGES:
        raise InvalidRequest(f"passages is {passages}, but a set of the form {form!r} has its own; leave it out")
    if split is not None and form != "beir":
        raise InvalidRequest(f"split is {split!r}, but a set of the form {form!r} has no splits; leave it out")


def _read_unsearched(
    path: Path, form: Form, passages: Path | None, split: str | None
) -> tuple[list[Unsearched], list[SourcePassage]]:
    if form == "squad":
        return read_squad(path)
    if form == "beir":
        return read_beir(path, split)
    if form not in OPEN_DOMAIN:
        raise InvalidRequest(f"the form is {form!r}; allowed: {', '.join(FORMS)}")
    pool = read_pool(passages or find_pool(path))
    return OPEN_DOMAIN[form](path), list(pool.values())


def _form_of_folder(path: Path) -> Form | None:
    return "beir" if any(path.glob(f"{CORPUS}*")) else None


def _form_of_table(path: Path) -> Form | None:
    _, names = next(read_lines(path), (1, ""))
    return "popqa" if "possible_answers" in names else None


def _form_of_record(record: Record) -> Form | None:
    fields: dict[str, Form] = {"data": "squad", "Data": "triviaqa", "passages": "rows", "answer": "nq-open"}
    return next((form for field, form in fields.items() if field in record.values), None)


def _first_record(path: Path) -> Record:
    if ".jsonl" not in path.suffixes:
        return read_json(path)
    record = next(read_json_lines(path), None)
    if record is None:
        raise InvalidRequest(f"{path} is empty; give one question per line")
    return record
