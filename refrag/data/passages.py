"""Passages from a file in the forms that `refrag ask` takes: JSON lines, or text with blank lines between them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from refrag.errors import InvalidRequest

TEXT_KEYS = ("text", "passage", "content")


def read_passages(path: Path) -> list[str]:
    """Return the passages of the file; raise InvalidRequest if it cannot be read or a line holds no passage."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise InvalidRequest(f"cannot read passages from {path}: {error}; name a file in UTF-8") from None
    if _is_json_lines(path, text):
        return list(_read_json_lines(path, text))
    return [paragraph.strip() for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


def _is_json_lines(path: Path, text: str) -> bool:
    """Return whether the name ends in .jsonl or the whole first line is JSON: plain text may begin with a brace too."""
    if path.suffix == ".jsonl":
        return True
    try:
        return isinstance(json.loads(text.lstrip().partition("\n")[0]), str | dict)
    except json.JSONDecodeError:
        return False


def _read_json_lines(path: Path, text: str) -> Iterator[str]:
    # Not splitlines(): JSON strings may hold U+2028 and its like unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _read_json(line, f"{path}, line {number}")


def _read_json(line: str, place: str) -> str:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"{place}: not JSON ({error}); give one JSON value per line") from None
    if isinstance(value, dict):
        value = next((value[key] for key in TEXT_KEYS if key in value), None)
    if not isinstance(value, str):
        raise InvalidRequest(f"{place}: no passage; give a string or an object with {' or '.join(TEXT_KEYS)}")
    return value
