"""Passages from a file: JSON lines, or plain text with blank lines between passages."""

import json
import re
import sys
from pathlib import Path

from refrag_client.errors import InvalidRequest

TEXT_KEYS = ("text", "passage", "content")


def read_passages(source: str) -> list[str]:
    """Return the passages in the file `source`, "-" for stdin; raise InvalidRequest if it cannot be read."""
    text = _read_text(source)
    return _from_json_lines(source, text) if _is_json_lines(source, text) else _from_paragraphs(text)


def _read_text(source: str) -> str:
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise InvalidRequest(f"cannot read passages from {source}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{source} is not UTF-8 at byte {error.start}; convert it first") from None


def _is_json_lines(source: str, text: str) -> bool:
    """Return whether the name ends in .jsonl or the whole first line is JSON: plain text may begin with a brace too."""
    if source.endswith(".jsonl"):
        return True
    first_line = text.lstrip().partition("\n")[0]
    try:
        return isinstance(json.loads(first_line), str | dict)
    except json.JSONDecodeError:
        return False


def _from_json_lines(source: str, text: str) -> list[str]:
    # Not splitlines(): JSON strings may hold U+2028 and its like unescaped.
    lines = enumerate(text.split("\n"), start=1)
    return [read_json_line(f"{source}, line {number}", line) for number, line in lines if line.strip()]


def read_json_line(place: str, line: str) -> str:
    """Return the passage in one line of JSON; raise InvalidRequest, which names `place`, if there is none."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"{place}: not JSON ({error}); give one JSON value per line") from None
    if isinstance(value, dict):
        value = next((value[key] for key in TEXT_KEYS if key in value), None)
    if not isinstance(value, str):
        raise InvalidRequest(f"{place}: no passage; give a string or an object with {' or '.join(TEXT_KEYS)}")
    return value


def _from_paragraphs(text: str) -> list[str]:
    paragraphs = re.split(r"\n\s*\n", text.replace("\r\n", "\n"))
    return [paragraph.strip() for paragraph in paragraphs if paragraph.strip()]
