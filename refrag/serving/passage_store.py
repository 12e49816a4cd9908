"""Serves collections to operators, beside the ensemble. The only process of the server that changes them.

index      collection, documents   add or replace; returns once they are committed, chunk vectors included
delete     collection, ids         remove
optimize   collection              bring the indexes up to date, after many changes
drop       collection              remove all of it
list                               what there is
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refrag.errors import InvalidRequest, Overloaded
from refrag.retrieval.documents import check_ids, parse_documents
from refrag.retrieval.settings import CollectionSettings, open_reader, open_writer
from refrag.serving.parameters import check_least
from refrag.serving.passage_encoder import PassageEncoder
from refrag.serving.tensors import Tensors, check_bytes, strings, text, texts
from refrag.serving.triton import infer

CHUNK_STORE = "chunk_store"
MAX_IDS = 1024


@dataclass(frozen=True)
class PassageStoreSettings(CollectionSettings):
    """Settings of collections, and

    max_text_bytes: limit for the documents of one request. max_documents: limit for their number.

    Raises SetupError for a number below 1.
    """

    max_text_bytes: int = 4 * 1024 * 1024
    max_documents: int = 4096

    def __post_init__(self) -> None:
        check_least(self, 1, "max_text_bytes", "max_documents")


class PassageStore:
    """The service behind the model `passage_store`, whose config.pbtxt lists the tensors."""

    def __init__(self, checkpoint: Path, settings: PassageStoreSettings) -> None:
        self.settings = settings
        self.encoder = PassageEncoder.load(checkpoint)
        identity = None if self.encoder is None else self.encoder.identity
        self.reader, self._writer = open_reader(settings, identity), open_writer(settings, identity)
        self._has_chunk_store: bool | None = None
        self.operations: dict[str, Callable[[Tensors], Tensors]] = {
            "index": self._index,
            "delete": self._delete,
            "optimize": self._optimize,
            "drop": self._drop,
            "list": self._list,
        }

    def run(self, inputs: Tensors) -> Tensors:
        name = text(inputs, "operation") or ""
        if name not in self.operations:
            raise InvalidRequest(f"operation is {name!r}; allowed: {', '.join(self.operations)}")
        return self.operations[name](inputs)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    @property
    def writer(self) -> "Any":
        if self._writer is None:
            raise InvalidRequest(
                "this server only searches collections (collections_writable is false); send changes to the one that "
                "writes them"
            )
        return self._writer

    def _index(self, inputs: Tensors) -> Tensors:
        collection = _collection(inputs)
        check_bytes(inputs, ["documents"], self.settings.max_text_bytes)
        documents = parse_documents(texts(inputs, "documents"))
        if len(documents) > self.settings.max_documents:
            raise InvalidRequest(f"documents has {len(documents)} elements, the limit is {self.settings.max_documents}")
        changed = self.writer.find_changed(collection, documents)
        # All of them, since the store may have lost vectors of passages that did not change.
        chunks = self._index_chunks([each.text for each in documents])
        if changed:
            passages = [each.text for each in changed]
            vectors = None if self.encoder is None else self.encoder.encode_passages(passages)
            self.writer.upsert(collection, changed, vectors)
        counts = {"num_passages": len(documents), "num_written": len(changed)}
        return _answer(
            {**counts, **{name: chunks.get(name, 0) for name in ("num_chunks", "num_tokens", "num_encoded")}}
        )

    def _index_chunks(self, passages: list[str]) -> dict[str, Any]:
        """Store the passages' chunk vectors and tokens; return the report, empty where the store outlives nothing."""
        if self._has_chunk_store is None:
            self._has_chunk_store = bool(_ask_chunk_store({"operation": strings("stats")})["tiers"])
        if not (self._has_chunk_store and passages):
            return {}
        return _ask_chunk_store({"operation": strings("index"), "passages": strings(*passages)})

    def _delete(self, inputs: Tensors) -> Tensors:
        ids = texts(inputs, "ids")
        if not 1 <= len(ids) <= MAX_IDS:
            raise InvalidRequest(f"ids has {len(ids)} elements; allowed is 1 to {MAX_IDS}")
        check_ids(ids)
        return _answer({"num_deleted": self.writer.delete(_collection(inputs), list(dict.fromkeys(ids)))})

    def _optimize(self, inputs: Tensors) -> Tensors:
        self.writer.optimize(_collection(inputs))
        return _answer({})

    def _drop(self, inputs: Tensors) -> Tensors:
        self.writer.drop(_collection(inputs))
        return _answer({})

    def _list(self, inputs: Tensors) -> Tensors:
        described = []
        for name in self.reader.names():
            try:
                described.append(asdict(self.reader.describe(name)))
            except (InvalidRequest, Overloaded):  # dropped since, or still being made
                continue
        encoder = "" if self.encoder is None else self.encoder.identity.fingerprint
        return _answer({"encoder": encoder, "collections": described})


def _collection(inputs: Tensors) -> str:
    if not (name := text(inputs, "collection") or ""):
        raise InvalidRequest("collection is missing; name the collection to change")
    return name


def _ask_chunk_store(inputs: Tensors) -> dict[str, Any]:
    [result] = infer(CHUNK_STORE, inputs, ["result"])
    told: dict[str, Any] = json.loads(result[0])
    return told


def _answer(result: dict[str, Any]) -> Tensors:
    return {"result": strings(json.dumps(result))}
