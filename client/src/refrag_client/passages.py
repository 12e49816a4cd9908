"""Passages from a file: JSON lines, one JSON array, or plain text with blank lines between passages."""

import json
import re
import sys
from pathlib import Path
from typing import Any

from refrag_client.errors import InvalidRequest

# Where the libraries of this field keep a passage's text, and where a file keeps its list of passages.
TEXT_KEYS = ("text", "passage", "content", "contents", "page_content", "body", "snippet")
LIST_KEYS = ("passages", "documents", "docs", "data", "results", "chunks", "contexts")
# Tables and the like, which would be taken for plain text.
OTHER_FORMS = (".csv", ".tsv", ".parquet", ".xlsx", ".pdf", ".docx")


def read_passages(source: str) -> list[str]:
    """Return the passages in the file `source`, "-" for stdin; raise InvalidRequest if it cannot be read."""
    text = _read_text(source)
    whole = _as_whole_json(source, text)
    if whole is not None:
        return _from_whole_json(source, whole)
    return _from_json_lines(source, text) if _is_json_lines(source, text) else _from_paragraphs(text)


def _read_text(source: str) -> str:
    if (suffix := Path(source).suffix.lower()) in OTHER_FORMS:
        raise InvalidRequest(f"{source} is a {suffix} file; convert it to JSON lines with one passage each, or to text")
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise InvalidRequest(f"cannot read passages from {source}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{source} is not UTF-8 at byte {error.start}; convert it first") from None


def _as_whole_json(source: str, text: str) -> list[Any] | dict[str, Any] | None:
    """Return the array or object that the whole file is, or None; plain text may begin with a bracket too."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if source.endswith(".json") and not _is_json_lines(source, text):
            raise InvalidRequest(f"{source} is not JSON: {error}") from None
        return None
    return value if isinstance(value, list | dict) else None


def _from_whole_json(source: str, value: list[Any] | dict[str, Any]) -> list[str]:
    if isinstance(value, dict):
        lists = [key for key in LIST_KEYS if isinstance(value.get(key), list)]
        if not lists or any(key in value for key in TEXT_KEYS):
            return [text_of(source, value)]
        if len(lists) > 1:
            raise InvalidRequest(f"{source} holds the lists {' and '.join(lists)}; leave one of them")
        source, value = f"{source}, {lists[0]}", value[lists[0]]
    return [text_of(f"{source}, element {number}", each) for number, each in enumerate(value, start=1)]


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
    return text_of(place, load_json_line(place, line))


def load_json_line(place: str, line: str) -> Any:
    """Return the value in one line of JSON; raise InvalidRequest, which names `place`, for what no text can hold."""
    try:
        value = json.loads(line)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        surrogate = error.object[error.start]
        raise InvalidRequest(
            f"{place}: the lone surrogate {surrogate!r}, which is no character; make the file again"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{place}: not JSON ({error}); give one JSON value per line") from None
    return value


def text_of(place: str, value: Any) -> str:
    """Return the passage that a JSON value is or holds; raise InvalidRequest for none, and for several."""
    if isinstance(value, str):
        return value
    needed = f"give a string or an object with {' or '.join(TEXT_KEYS)}"
    if not isinstance(value, dict):
        kind = "an array" if isinstance(value, list) else json.dumps(value)
        raise InvalidRequest(f"{place}: no passage but {kind}; {needed}")
    found = {key: value[key] for key in TEXT_KEYS if key in value}
    if not found:
        raise InvalidRequest(f"{place}: no passage among the keys {', '.join(value) or '(none)'}; {needed}")
    for key, text in found.items():
        if not isinstance(text, str):
            raise InvalidRequest(f"{place}: no passage, since {key} is {json.dumps(text)[:40]}; give text there")
    if len(set(found.values())) > 1:
        raise InvalidRequest(f"{place}: several texts, {' and '.join(found)}; leave the one that is the passage")
    return str(next(iter(found.values())))


def _from_paragraphs(text: str) -> list[str]:
    paragraphs = re.split(r"\n\s*\n", text.replace("\r\n", "\n"))
    return [paragraph.strip() for paragraph in paragraphs if paragraph.strip()]
