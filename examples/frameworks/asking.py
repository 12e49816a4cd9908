"""Asks the endpoint by OpenAI's client, once for all connectors, and reads what came of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai import OpenAI

Json = dict[str, Any]

# What the endpoint reads of a document beside its text, and takes as text alone.
NAMES = ("title", "url")


@dataclass(frozen=True)
class Part:
    """A piece of an answer; a whole answer is one. The last has citations, finish reason and usage."""

    text: str
    citations: list[Json] = field(default_factory=list)
    finish_reason: str | None = None
    usage: Json | None = None


@dataclass(frozen=True)
class Endpoint:
    """An endpoint and how to ask it. refrag: options such as expand_fraction. options: OpenAI's, such as max_tokens."""

    base_url: str
    api_key: str = "none"
    model: str = "refrag"
    refrag: Json = field(default_factory=dict)
    options: Json = field(default_factory=dict)

    def ask(self, messages: Sequence[Json], documents: Sequence[Json], **options: Any) -> Part:
        """Return the whole answer."""
        with self._connect() as client:
            answer = self._create(client, messages, documents, **options).model_dump()
        choice = answer["choices"][0]
        message = choice["message"]
        return Part(message["content"], message["citations"], choice["finish_reason"], answer["usage"])

    def stream(self, messages: Sequence[Json], documents: Sequence[Json], **options: Any) -> Iterator[Part]:
        """Yield the answer in pieces; leaving the loop stops the server."""
        asked = {**options, "stream": True, "stream_options": {"include_usage": True}}
        with self._connect() as client, self._create(client, messages, documents, **asked) as chunks:
            for chunk in chunks:
                yield _read_chunk(chunk.model_dump())

    def _connect(self) -> OpenAI:
        return OpenAI(base_url=self.base_url, api_key=self.api_key)

    def _create(self, client: OpenAI, messages: Sequence[Json], documents: Sequence[Json], **options: Any) -> Any:
        body = {"documents": list(documents), "refrag": self.refrag}
        asked: Json = {"model": self.model, "messages": list(messages), **self.options, **options}
        return client.chat.completions.create(**asked, extra_body=body)


def as_document(text: str, metadata: Mapping[str, Any], id: str | None = None) -> Json:
    """Return a framework's document as the endpoint takes it.

    The metadata has a place of its own, since beside the text an `id` or a `snippet` among it would be read as such.
    """
    named = {name: metadata[name] for name in NAMES if isinstance(metadata.get(name), str)}
    document: Json = {"data": {**named, "text": text, "metadata": dict(metadata)}}
    return document if id is None else {"id": id, **document}


def _read_chunk(chunk: Json) -> Part:
    if not chunk["choices"]:
        return Part("", usage=chunk["usage"])
    [choice] = chunk["choices"]
    delta = choice["delta"]
    return Part(delta.get("content") or "", delta.get("citations") or [], choice["finish_reason"])
