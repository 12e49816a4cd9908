"""Passage files: JSON lines or tab-separated values, each passage with an id, a text and perhaps a title."""

from collections.abc import Iterator
from pathlib import Path

from refrag.data.questions.records import Record, add_unique, read_json_lines, read_table
from refrag.data.questions.row import SourcePassage
from refrag.errors import InvalidRequest

Pool = dict[str, SourcePassage]
# Names beside a question file, in the order in which they are looked for.
NAMES = ("passages.jsonl.gz", "passages.jsonl", "passages.tsv.gz", "passages.tsv")
IDS, TEXTS = ("id", "_id"), ("text", "contents", "passage")


def read_pool(path: Path) -> Pool:
    """Return the passages by their ids.

    Fields or columns: `id` or `_id`, `text`, `contents` or `passage`, and `title`, which may be missing. Of a passage
    with a title the text may be empty.
    """
    pool: Pool = {}
    for number, record in enumerate(_records(path), start=1):
        field = _first(record, IDS)
        passage_id = record.id(field, str(number))
        title, text_field = record.text_or_empty("title"), _first(record, TEXTS)
        text = record.text_or_empty(text_field) if title.strip() else record.text(text_field)
        add_unique(pool, passage_id, SourcePassage(passage_id, title, text), record, field)
    if not pool:
        raise InvalidRequest(f"{path} holds no passage; give at least one, as an object with id and text per line")
    return pool


def find_pool(questions: Path) -> Path:
    """Return the passage file beside a question file."""
    for name in NAMES:
        if (path := questions.parent / name).is_file():
            return path
    raise InvalidRequest(f"{questions} has no passages beside it; name their file, or put {' or '.join(NAMES)} there")


def _records(path: Path) -> Iterator[Record]:
    return read_table(path, ["id", "text"]) if ".tsv" in path.suffixes else read_json_lines(path)


def _first(record: Record, fields: tuple[str, ...]) -> str:
    """Return the first of the fields that the record has, or the usual one for a message about its absence."""
    return next((field for field in fields if record.has(field)), fields[0])
