"""Documents as they come over the wire, one JSON object each → checked documents."""

import json
from collections.abc import Sequence
from typing import Any

from refrag.errors import InvalidRequest
from refrag.retrieval.base import Document, Value
from refrag.retrieval.conditions import check_field_name, check_scalar, parse_object

KEYS = ("id", "text", "title", "metadata")
MAX_ID_BYTES = 512


def parse_documents(texts: Sequence[str]) -> list[Document]:
    """Return the documents, or raise InvalidRequest that tells which one is at fault, and where in it."""
    documents = [_parse(f"documents[{number}]", text) for number, text in enumerate(texts)]
    places: dict[str, int] = {}
    for number, document in enumerate(documents):
        if document.id in places:
            raise InvalidRequest(
                f"documents[{number}] has the id {document.id!r}, which documents[{places[document.id]}] has too; "
                "give each document an id of its own"
            )
        places[document.id] = number
    return documents


def check_ids(ids: Sequence[str]) -> None:
    for number, each in enumerate(ids):
        _check_id(f"ids[{number}]", each)


def _parse(place: str, text: str) -> Document:
    values = parse_object(text, place, f"with {', '.join(KEYS)}")
    if unknown := sorted(values.keys() - set(KEYS)):
        raise InvalidRequest(f"{place} has {', '.join(map(repr, unknown))}; allowed are {', '.join(KEYS)}")
    _check_id(f"{place}, id,", values.get("id"))
    title, passage = values.get("title") or "", values.get("text")
    if not isinstance(title, str):
        raise InvalidRequest(f"{place} has the title {json.dumps(title)[:80]}; give a string, or leave it out")
    if not isinstance(passage, str) or not (passage.strip() or title.strip()):
        raise InvalidRequest(
            f"{place} has no text; give a string in the field text, which is empty only where there is a title"
        )
    return Document(values["id"], join_title(title, passage), title, _parse_metadata(place, values.get("metadata")))


def join_title(title: str, text: str) -> str:
    """Return a passage as the decoder reads it: the title on a line of its own, then the text; neither if empty."""
    return "\n".join(part for part in (title, text) if part)


def _check_id(place: str, value: Any) -> None:
    if not isinstance(value, str) or not value or len(value.encode()) > MAX_ID_BYTES:
        raise InvalidRequest(f"{place} is {json.dumps(value)[:80]}; give a string of 1 to {MAX_ID_BYTES} bytes")


def _parse_metadata(place: str, metadata: Any) -> dict[str, Value]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise InvalidRequest(f"{place} has the metadata {json.dumps(metadata)[:80]}; give an object, or leave it out")
    for field in metadata:
        check_field_name(field, f"{place}, metadata,")
    return {field: check_scalar(value, f"{place}, metadata {field!r},") for field, value in metadata.items()}
