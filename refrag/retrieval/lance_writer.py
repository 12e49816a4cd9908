"""Changes collections in LanceDB: one process at a time, which holds a lock beside the tables.

Two processes that add the same new ids at once would both succeed, and leave them twice. Object storage has no such
lock: there, all servers but one are to be set read-only.
"""

import random
import re
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
from filelock import FileLock, Timeout
from lancedb.index import FTS, BTree, IvfFlat

from refrag.errors import InvalidRequest, Overloaded
from refrag.retrieval.base import Document, PassageEncoderIdentity
from refrag.retrieval.lance import (
    encoder_of,
    find_rows,
    is_there,
    list_names,
    require_encoder,
    storage_errors,
    unknown_collection,
)
from refrag.retrieval.lance_rows import (
    VECTOR,
    arrow_fields,
    digest_of,
    fields_of,
    new_fields,
    new_schema,
    quote,
    rows_of,
)

LOCK = ".writer.lock"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
# Below this, comparing all vectors without an index takes a few milliseconds.
MIN_INDEXED_ROWS = 5_000
# A search reads NUM_PROBES partitions.
ROWS_PER_PARTITION = 10_000
# The vectors' index is named after the rows that its lists were made for, which the engine does not tell. One of an
# older release has another name.
INDEX_PREFIX = "vector_"
# Each change leaves a fragment, through all of which a search has to go.
CHANGES_BETWEEN_OPTIMIZE = 32
# Readers that began before must have ended before the files of their version go.
KEPT_VERSIONS = timedelta(minutes=10)
NUM_ATTEMPTS, FIRST_PAUSE_SECONDS = 8, 0.05
CONFLICT = re.compile(r"conflict", re.IGNORECASE)


class LanceWriter:
    """Changes the collections under one address; for one thread."""

    def __init__(self, address: str, encoder: PassageEncoderIdentity | None) -> None:
        self.encoder = encoder
        self._lock = _lock_of(address)
        with storage_errors("opened"):
            # Another process may have been the one that wrote, until it stopped.
            self._database = lancedb.connect(address, read_consistency_interval=timedelta(0))
        self._tables: dict[str, Any] = {}
        self._is_indexed: set[str] = set()
        self._num_changes: dict[str, int] = {}

    def find_changed(self, name: str, documents: Sequence[Document]) -> list[Document]:
        table = self._find(name)
        if table is None:
            return list(documents)
        with storage_errors("read"):
            rows = find_rows(table, [each.id for each in documents], ["id", "digest"])
        known = {row["id"]: row["digest"] for row in rows}
        return [each for each in documents if known.get(each.id) != digest_of(each)]

    def upsert(self, name: str, documents: Sequence[Document], vectors: np.ndarray | None) -> None:
        self._take_lock()
        with storage_errors("written"):
            table = self._open_indexed(name)
            if kinds := new_fields(documents, fields_of(table.schema)):
                _retry(lambda: table.add_columns(arrow_fields(kinds)))
            rows = rows_of(documents, vectors, table.schema)
            merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            _retry(lambda: merge.execute(rows))
            self._count_change(name)

    def delete(self, name: str, ids: Sequence[str]) -> int:
        self._take_lock()
        table = self._require(name)
        with storage_errors("written"):
            found = find_rows(table, ids, ["id"])
            if found:
                _retry(lambda: table.delete(f"id IN ({', '.join(quote(row['id']) for row in found)})"))
                self._count_change(name)
        return len(found)

    def drop(self, name: str) -> None:
        self._take_lock()
        if name not in (known := list_names(self._database)):
            raise InvalidRequest(unknown_collection(name, known))
        with storage_errors("written"):
            self._database.drop_table(name)
        self._forget(name)

    def optimize(self, name: str) -> None:
        self._take_lock()
        table = self._require(name)
        with storage_errors("written"):
            _retry(lambda: _index_vectors(table))
            _retry(lambda: table.optimize(cleanup_older_than=KEPT_VERSIONS))
        self._num_changes[name] = 0

    def close(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _count_change(self, name: str) -> None:
        self._num_changes[name] = self._num_changes.get(name, 0) + 1
        if self._num_changes[name] >= CHANGES_BETWEEN_OPTIMIZE:
            self.optimize(name)

    def _forget(self, name: str) -> None:
        self._tables.pop(name, None)
        self._is_indexed.discard(name)
        self._num_changes.pop(name, None)

    def _require(self, name: str) -> Any:
        table = self._find(name)
        if table is None:
            raise InvalidRequest(unknown_collection(name, list_names(self._database)))
        return table

    def _find(self, name: str) -> Any:
        """Return the table with its indexes, or None; raise InvalidRequest if another encoder made its vectors."""
        with storage_errors("opened"):
            if name not in self._tables or not is_there(self._tables[name]):
                self._forget(name)
                if name not in list_names(self._database):
                    return None
                self._tables[name] = self._database.open_table(name)
        require_encoder(name, encoder_of(self._tables[name]), self.encoder, "")
        return self._tables[name]

    def _create(self, name: str) -> Any:
        if not NAME.fullmatch(name):
            raise InvalidRequest(
                f"collection is {name!r}; give up to 128 letters, digits, '_', '-' and '.', a letter or digit first"
            )
        return self._database.create_table(name, schema=new_schema(self.encoder))

    def _open_indexed(self, name: str) -> Any:
        """Return the table, made if need be, with the indexes that a process killed before may have left out."""
        table = self._find(name)
        if table is None or name not in self._is_indexed:
            table = self._create(name) if table is None else table
            indexed = {index.columns[0] for index in table.list_indices()}
            if "id" not in indexed:
                _retry(lambda: table.create_index("id", config=BTree()))
            if "text" not in indexed:
                _retry(lambda: table.create_index("text", config=FTS()))
            self._is_indexed.add(name)
            self._tables[name] = table
        return table

    def _take_lock(self) -> None:
        if self._lock is None or self._lock.is_locked:
            return
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise Overloaded(
                f"another server writes to these collections and holds {self._lock.lock_file}; send what is to be "
                "indexed to that one, or try again once it has stopped"
            ) from None


def _lock_of(address: str) -> FileLock | None:
    """Return the lock of the one process that writes in this folder, made if need be; None on object storage."""
    if "://" in address:
        return None
    with storage_errors("opened"):
        Path(address).mkdir(parents=True, exist_ok=True)
    return FileLock(Path(address, LOCK))


def _index_vectors(table: Any) -> None:
    """Make the vectors' index anew if the table has doubled since; smaller changes are added to its lists."""
    num_rows = table.count_rows()
    if VECTOR not in table.schema.names or num_rows < MIN_INDEXED_ROWS:
        return
    trained = {index.name: _trained_rows(index.name) for index in table.list_indices() if index.columns == [VECTOR]}
    newest = max(trained, key=trained.__getitem__, default=None)
    if newest is None or num_rows > 2 * trained[newest]:
        newest = f"{INDEX_PREFIX}{num_rows}"
        num_partitions = max(1, num_rows // ROWS_PER_PARTITION)
        table.create_index(VECTOR, config=IvfFlat(distance_type="cosine", num_partitions=num_partitions), name=newest)
    # Only now, and again after a kill in between: without any, searches would go through all vectors.
    for name in trained.keys() - {newest}:
        table.drop_index(name)


def _trained_rows(index: str) -> int:
    """Return how many rows the lists of an index of vectors were made for, 0 where its name does not tell."""
    told = index.removeprefix(INDEX_PREFIX)
    return int(told) if told.isdecimal() else 0


def _retry(act: Callable[[], Any]) -> None:
    """Do it again where the engine says that another change was in its way; raise what it says at last."""
    for attempt in range(NUM_ATTEMPTS):
        try:
            act()
            return
        except (OSError, RuntimeError) as error:
            if attempt == NUM_ATTEMPTS - 1 or not CONFLICT.search(str(error)):
                raise
        time.sleep(FIRST_PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1))
