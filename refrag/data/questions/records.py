"""Records of data files, whose every fault names the file, the line and the field."""

import csv
import gzip
import json
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

from refrag.errors import InvalidRequest

READ_FAULTS = (OSError, EOFError, UnicodeError, zlib.error)


class Record:
    """One object of a file; `place` says where it stands: a file and a line, or a path inside the file."""

    def __init__(self, values: Any, place: str) -> None:
        self.place = place
        if not isinstance(values, dict):
            raise InvalidRequest(f"{place}: holds {_show(values)}; give an object with named fields")
        self.values: dict[str, Any] = values

    def has(self, field: str) -> bool:
        return self.values.get(field) is not None

    def text(self, field: str) -> str:
        """Return a text that is not empty."""
        value = self.values.get(field)
        if not isinstance(value, str) or not value.strip():
            raise self.fault(field, "a text that is not empty")
        return value

    def text_or_empty(self, field: str) -> str:
        value = self.values.get(field)
        if value is not None and not isinstance(value, str):
            raise self.fault(field, "a text")
        return value or ""

    def texts(self, field: str) -> tuple[str, ...]:
        """Return a list of texts without repetitions; none where the field is missing."""
        value = self.values.get(field)
        items = [] if value is None else value
        if not isinstance(items, list) or not all(isinstance(item, str) and item.strip() for item in items):
            raise self.fault(field, "a list of texts, none of them empty")
        return tuple(dict.fromkeys(items))

    def flag(self, field: str, default: bool) -> bool:
        value = self.values.get(field, default)
        if not isinstance(value, bool):
            raise self.fault(field, "true or false")
        return value

    def id(self, field: str, default: str) -> str:
        """Return an identifier as text; sources write numbers too."""
        value = self.values.get(field, default)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise self.fault(field, "a text or a number")
        return str(value)

    def record(self, field: str) -> "Record":
        return Record(self.values.get(field), f"{self.place}, field {field}")

    def records(self, field: str) -> list["Record"]:
        """Return the objects of a list that must be there."""
        items = self.values.get(field)
        if not isinstance(items, list):
            raise self.fault(field, "a list of objects")
        return [Record(item, f"{self.place}, field {field}[{number}]") for number, item in enumerate(items)]

    def fault(self, field: str, wanted: str) -> InvalidRequest:
        given = f"is {_show(self.values[field])}" if field in self.values else "is missing"
        return InvalidRequest(f"{self.place}, field {field}: {given}; give {wanted}")


def read_json(path: Path) -> Record:
    """Return the one object of a JSON file."""
    with open_text(path) as file:
        try:
            return Record(json.load(file), str(path))
        except READ_FAULTS as error:
            raise _unreadable(path, error) from None
        except ValueError as error:
            raise InvalidRequest(f"{path}: not JSON ({error}); give one JSON object") from None


def read_json_lines(path: Path) -> Iterator[Record]:
    """Yield the object of each line that is not blank."""
    for number, line in read_lines(path):
        place = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise InvalidRequest(f"{place}: not JSON ({error}); give one JSON object per line") from None
        yield Record(values, place)


def read_table(path: Path, columns: Collection[str]) -> Iterator[Record]:
    """Yield the rows of a file of tab-separated values whose first line names at least these columns.

    A text may be quoted as in CSV, but is one line; an unquoted one may hold quotation marks, but not begin with one.
    """
    names: list[str] = []
    for number, line in read_lines(path):
        place = f"{path}, line {number}"
        texts = _split_row(line, place)
        if not names:
            names = texts
            if missing := sorted(set(columns) - set(names)):
                raise InvalidRequest(f"{place}: no column {', '.join(missing)}; name it in the first line")
        elif len(texts) > len(names):
            raise InvalidRequest(
                f"{place}: has {len(texts)} columns, the first line names {len(names)}; take tabs out of the texts"
            )
        else:
            yield Record({name: text for name, text in zip(names, texts, strict=False) if name}, place)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank with their numbers from 1."""
    with open_text(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
        except READ_FAULTS as error:
            raise _unreadable(path, error) from None


def open_text(path: Path) -> TextIO:
    """Open a file of UTF-8, compressed by gzip if its name ends in .gz."""
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "rt", encoding="utf-8-sig")
        return path.open(encoding="utf-8-sig")
    except OSError as error:
        raise _unreadable(path, error) from None


def add_unique(table: dict[str, Any], key: str, value: Any, record: Record, field: str) -> None:
    """Put a value under its id, or raise InvalidRequest if the id is taken."""
    if key in table:
        raise InvalidRequest(f"{record.place}, field {field}: {key!r} is there twice; give each its own")
    table[key] = value


def _split_row(line: str, place: str) -> list[str]:
    try:
        # By itself, so that a quotation mark without its second cannot take in the lines that follow.
        return next(csv.reader([line], delimiter="\t", strict=True))
    except csv.Error as error:
        raise InvalidRequest(
            f"{place}: not tab-separated values ({error}); put a text that begins with a quotation mark into quotation "
            "marks, double its own, and keep it on one line"
        ) from None


def _unreadable(path: Path, error: Exception) -> InvalidRequest:
    return InvalidRequest(f"{path} cannot be read: {error}; name a file in UTF-8, or one that gzip compressed")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
