"""Rows of a collection's table: documents → Arrow, and what a search returns → hits."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from refrag.errors import InvalidRequest
from refrag.retrieval.base import Document, Hit, PassageEncoderIdentity, Value
from refrag.retrieval.conditions import kind_of

ENCODER_KEY = b"refrag.passage_encoder"
VECTOR = "vector"
PREFIX = "meta_"
MAX_FIELDS = 64
DIGEST_BYTES = 16

# By the kind of a metadata field's values.
ARROW_TYPES = {"string": pa.string(), "number": pa.float64(), "bool": pa.bool_()}
KINDS = {arrow: kind for kind, arrow in ARROW_TYPES.items()}


def new_schema(encoder: PassageEncoderIdentity | None) -> pa.Schema:
    """Return the columns of a new collection, which has no metadata fields yet."""
    fields = [pa.field(name, pa.string(), nullable=False) for name in ("id", "title", "text", "metadata", "digest")]
    if encoder is not None:
        fields.append(pa.field(VECTOR, pa.list_(pa.float32(), encoder.width), nullable=False))
    return pa.schema(fields, metadata={ENCODER_KEY: b"" if encoder is None else encoder.fingerprint.encode()})


def fields_of(schema: pa.Schema) -> dict[str, str]:
    """Return the kind of each metadata field that the collection has, by its name."""
    return {field.name.removeprefix(PREFIX): KINDS[field.type] for field in schema if field.name.startswith(PREFIX)}


def new_fields(documents: Sequence[Document], known: Mapping[str, str]) -> dict[str, str]:
    """Return the kinds of the documents' metadata fields that the collection lacks.

    Raises InvalidRequest for a field whose values are of two kinds, and for too many fields.
    """
    kinds = dict(known)
    for document in documents:
        for field, value in document.metadata.items():
            kind = kind_of(value)
            if kinds.setdefault(field, kind) != kind:
                raise InvalidRequest(
                    f"document {document.id!r} has {json.dumps(value)[:80]} in the field {field!r}, whose values are "
                    f"of type {kinds[field]} elsewhere; give all of them one type"
                )
    if len(kinds) > MAX_FIELDS:
        raise InvalidRequest(f"the metadata has {len(kinds)} different fields, the limit is {MAX_FIELDS}")
    return {field: kind for field, kind in kinds.items() if field not in known}


def arrow_fields(kinds: Mapping[str, str]) -> list[pa.Field]:
    """Return the columns of these metadata fields."""
    return [pa.field(f"{PREFIX}{field}", ARROW_TYPES[kind]) for field, kind in kinds.items()]


def rows_of(documents: Sequence[Document], vectors: np.ndarray | None, schema: pa.Schema) -> pa.Table:
    """Return the documents as rows of a table with this schema.  vectors: FP32 (N, E)"""
    columns: dict[str, Any] = {
        "id": [each.id for each in documents],
        "title": [each.title for each in documents],
        "text": [each.text for each in documents],
        "metadata": [_dump(each.metadata) for each in documents],
        "digest": [digest_of(each) for each in documents],
    }
    for field, kind in fields_of(schema).items():
        columns[f"{PREFIX}{field}"] = [_as_column(each.metadata.get(field), kind) for each in documents]
    arrays = [pa.array(columns[name], schema.field(name).type) for name in schema.names if name != VECTOR]
    names = [name for name in schema.names if name != VECTOR]
    if vectors is not None:
        flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
        arrays.append(pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]))
        names.append(VECTOR)
    by_name = dict(zip(names, arrays, strict=True))
    return pa.Table.from_arrays([by_name[name] for name in schema.names], schema=schema)


def hit_of(row: Mapping[str, Any], score: float) -> Hit:
    metadata: dict[str, Value] = json.loads(row["metadata"])
    return Hit(row["id"], row["text"], row["title"], metadata, score)


def digest_of(document: Document) -> str:
    """Return a hash of all that a row holds of a document."""
    content = json.dumps([document.id, document.title, document.text, dict(document.metadata)], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=DIGEST_BYTES).hexdigest()


def quote(text: str) -> str:
    """Return the text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def _as_column(value: Value | None, kind: str) -> Value | None:
    # As filters compare it: pyarrow refuses an integer that a double holds only nearly, from 2^53 on.
    return float(value) if kind == "number" and value is not None else value


def _dump(metadata: Mapping[str, Value]) -> str:
    return json.dumps(dict(metadata), ensure_ascii=False, sort_keys=True)
