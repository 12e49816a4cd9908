"""The client of the server's collections: fills them, searches them, and clears them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from refrag_client.answer import Passage, read_passages
from refrag_client.errors import InvalidRequest
from refrag_client.operations import OperationsClient, strings
from refrag_client.request import to_filter


@dataclass(frozen=True)
class Document:
    """A passage to keep in a collection, in place of one with the same id.

    metadata: strings, numbers and bools by name, for filters.
    """

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WriteReport:
    """Counts of one request: passages that it sent, those that were new or changed, and chunks of all of them.

    num_encoded: chunks whose vectors the store lacked.
    """

    num_passages: int
    num_written: int
    num_chunks: int
    num_tokens: int
    num_encoded: int


@dataclass(frozen=True)
class CollectionReport:
    """The contents of a collection. encoder: fingerprint of its passage encoder, "" without passage vectors."""

    name: str
    num_passages: int
    encoder: str
    num_bytes: int | None


class CollectionClient(OperationsClient):
    """A client of the models `passage_store` and `retriever`, safe to share between threads; methods raise RefragError.

    Questions about a collection are answered by RefragClient. retriever_model: the model that searches.
    """

    default_model = "passage_store"
    retriever_model = "retriever"

    def index(self, collection: str, documents: Iterable[Document]) -> WriteReport:
        """Add the documents, chunk vectors included, and return once all are committed; make the collection if new."""
        sent = strings(_to_json(document) for document in documents)
        return WriteReport(**self._ask("index", collection=strings([collection]), documents=sent)[0])

    def delete(self, collection: str, ids: Sequence[str]) -> int:
        """Remove the passages with these ids, and return how many there were."""
        result, _ = self._ask("delete", collection=strings([collection]), ids=strings(ids))
        return int(result["num_deleted"])

    def optimize(self, collection: str) -> None:
        """Bring the collection's indexes up to date, which makes searches fast again after many changes."""
        self._ask("optimize", collection=strings([collection]))

    def drop(self, collection: str) -> None:
        """Remove a whole collection."""
        self._ask("drop", collection=strings([collection]))

    def list(self) -> tuple[CollectionReport, ...]:
        """Return what each collection holds."""
        result, _ = self._ask("list")
        return tuple(CollectionReport(**each) for each in result["collections"])

    def search(
        self,
        collection: str,
        question: str,
        num_passages: int | None = None,
        filter: Mapping[str, Any] | str | None = None,
        search_mode: str | None = None,
    ) -> tuple[Passage, ...]:
        """Return the passages that fit the question best, best first; the server chooses what is not given."""
        inputs = {"text_input": strings([question]), "collection": strings([collection])}
        if num_passages is not None:
            inputs["num_passages"] = np.array([num_passages], np.int64)
        if (conditions := to_filter(filter)) is not None:
            inputs["filter"] = strings([conditions])
        if search_mode is not None:
            inputs["search_mode"] = strings([search_mode])
        return read_passages(self._infer(self.retriever_model, inputs), "passages")


def _to_json(document: Document) -> str:
    try:
        return json.dumps(asdict(document), ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"document {document.id!r} cannot be sent as JSON: {error}") from None
