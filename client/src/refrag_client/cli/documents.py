"""Documents for a collection, from JSON lines or a folder of text files, in batches for one request each."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refrag_client.collections import Document
from refrag_client.corpus import read_files
from refrag_client.errors import InvalidRequest
from refrag_client.passages import load_json_line, text_of

# Where the libraries of this field keep a document's id, and its metadata.
ID_KEYS = ("id", "_id", "doc_id")
METADATA_KEYS = ("metadata", "meta")
# Of a request, far from the 4,096 that the server takes: short lines reach it long before the bytes of a batch.
MAX_DOCUMENTS = 1000


@dataclass(frozen=True)
class DocumentBatch:
    """Documents for one request, and the bytes of the corpus that they take."""

    documents: list[Document]
    num_bytes: int


def read_document_batches(corpus: Path, batch_bytes: int) -> Iterator[DocumentBatch]:
    """Yield batches of about `batch_bytes`, and of MAX_DOCUMENTS at most.

    Raises InvalidRequest that names file, line and field of what is wrong.
    """
    read = _read_folder(corpus) if corpus.is_dir() else _read_lines(corpus)
    documents: list[Document] = []
    num_bytes = 0
    for document, size in read:
        documents += [] if document is None else [document]
        num_bytes += size
        if num_bytes >= batch_bytes or len(documents) == MAX_DOCUMENTS:
            yield DocumentBatch(documents, num_bytes)
            documents, num_bytes = [], 0
    if num_bytes:
        yield DocumentBatch(documents, num_bytes)


def corpus_bytes(corpus: Path) -> int:
    """Return the bytes of all texts, for a progress bar."""
    if corpus.is_dir():
        return sum(len(text.encode()) for _, text in read_files(corpus))
    return corpus.stat().st_size


def _read_folder(folder: Path) -> Iterator[tuple[Document | None, int]]:
    """Yield the passages of the text files below a folder, each under its file's path."""
    last, number = "", 0
    for path, text in read_files(folder):
        number = number + 1 if path == last else 1
        last = path
        yield Document(f"{path}#{number}", text, path, {"source": path}), len(text.encode())


def _read_lines(path: Path) -> Iterator[tuple[Document | None, int]]:
    """Yield the document in each line, None for an empty line and for a text without id that came before."""
    lines: dict[str, int] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}, line {number}"
            if not line.strip():
                yield None, len(line)
                continue
            document, has_own_id = _read_document(place, _decode(place, line, number))
            if document.id in lines and has_own_id:
                raise InvalidRequest(
                    f"{place}: the id {document.id!r} is that of line {lines[document.id]} too; give each document an "
                    "id of its own"
                )
            is_new = document.id not in lines
            lines.setdefault(document.id, number)
            yield document if is_new else None, len(line)


def _decode(place: str, line: bytes, number: int) -> Any:
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{place} is not UTF-8 at byte {error.start}; convert the file first") from None
    return load_json_line(place, text)


def _read_document(place: str, value: Any) -> tuple[Document, bool]:
    """Return the document, and whether it brings its own id; else a hash of its text is one."""
    text = text_of(place, value)
    fields = value if isinstance(value, dict) else {}
    title = fields.get("title") or ""
    if not isinstance(title, str):
        raise InvalidRequest(f"{place}: title is {json.dumps(title)[:40]}; give a string there")
    if not (text.strip() or title.strip()):
        raise InvalidRequest(f"{place}: the text is empty, and there is no title; give either, or leave the line out")
    own_id = _read_id(place, fields)
    hashed = hashlib.blake2b(f"{title}\n{text}".encode(), digest_size=8).hexdigest()
    document = Document(own_id or f"text-{hashed}", text, title, _read_metadata(place, fields))
    return document, own_id is not None


def _read_id(place: str, fields: dict[str, Any]) -> str | None:
    for key in ID_KEYS:
        value = fields.get(key)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is not None:
            raise InvalidRequest(f"{place}: {key} is {json.dumps(value)[:40]}; give a string that is not empty")
    return None


def _read_metadata(place: str, fields: dict[str, Any]) -> dict[str, Any]:
    given: Any = next((fields[key] for key in METADATA_KEYS if fields.get(key) is not None), {})
    if not isinstance(given, dict):
        raise InvalidRequest(f"{place}: metadata is {json.dumps(given)[:40]}; give an object there")
    known = {name: value for name, value in given.items() if value is not None}
    for name, value in known.items():
        if not isinstance(value, str | int | float | bool):
            raise InvalidRequest(
                f"{place}: metadata {name!r} is {json.dumps(value)[:40]}; give a string, a number, true or false"
            )
    return known
