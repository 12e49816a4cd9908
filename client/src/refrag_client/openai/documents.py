"""Documents of a request, in the forms that vLLM and Cohere take: text, {id, title, text}, or {id, data}."""

import json
from dataclasses import dataclass, field
from typing import Any

from refrag_client.answer import Passage
from refrag_client.errors import InvalidRequest
from refrag_client.passages import text_of

# Citations bring back all that a document has, inside objects of their own.
MAX_LEVELS = 16
# What an object may have beside `data`, which then holds all the rest.
WITH_DATA = {"id", "data"}


@dataclass(frozen=True)
class Document:
    """A passage with what its caller knows it by. The decoder reads `text` alone.

    fields: all that the caller sent, for the citations.
    """

    text: str
    id: str | None = None
    title: str | None = None
    url: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def retrieved(cls, passage: Passage) -> "Document":
        """Return what the server has retrieved from a collection."""
        fields = {"title": passage.title, "text": passage.text} if passage.title else {"text": passage.text}
        return cls(passage.text, passage.id, passage.title or None, fields=fields)

    def name(self, number: int) -> str:
        """Return its id, or the one that the `number`-th document of a request has without one."""
        return f"doc:{number}" if self.id is None else self.id


def read_document(value: Any) -> Document:
    """Return the document that a JSON value stands for; raise ValueError that says what is wrong with it."""
    if isinstance(value, str):
        return Document(value, fields={"text": value})
    if not isinstance(value, dict):
        raise ValueError(f"a document is text or an object with text, not {type(value).__name__}")
    _check_can_be_sent_back(value)
    fields = _fields_of(value)
    try:
        text = text_of("the document", fields)
    except InvalidRequest as error:
        raise ValueError(str(error)) from None
    known = {name: _text_or_none(name, {**fields, **value}) for name in ("id", "title", "url")}
    return Document(text, fields=fields, **known)


def _fields_of(value: dict[str, Any]) -> dict[str, Any]:
    if "data" not in value:
        return {name: each for name, each in value.items() if name != "id"}
    if unknown := sorted(set(value) - WITH_DATA):
        raise ValueError(f"a document with data has id beside it, and not {', '.join(unknown)}; put it into data")
    data = value["data"]
    if isinstance(data, str):
        return {"text": data}
    if not isinstance(data, dict):
        raise ValueError("data of a document is neither text nor an object; give one of them")
    return data


def _check_can_be_sent_back(value: dict[str, Any]) -> None:
    if _is_deeper(value, MAX_LEVELS):
        raise ValueError(f"a document has values within more than {MAX_LEVELS} others; leave the inner ones out")
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a document has a lone surrogate, {error.object[error.start]!r}; decode it again") from None
    except ValueError:
        raise ValueError("a document has a number that is not finite, which JSON cannot hold; leave it out") from None


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(each, levels - 1) for each in inner)


def _text_or_none(name: str, fields: dict[str, Any]) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} of a document is {str(value)[:40]}; give text, or leave it out")
    return value
