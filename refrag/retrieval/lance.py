"""Collections as tables of LanceDB, in a folder or on object storage.

Each collection is a table of its name. One row:

    id, title, text      a passage; text is what the decoder reads, under the title
    metadata             the whole metadata as JSON, to hand back
    meta_<field>         each field of it by itself, to filter by
    digest               a hash of all of them: what has not changed is not written again
    vector               the passage vector, if the deployment has a passage encoder

The text has a lexical index (BM25), the ids one for lookups, and the vectors an exact one: all are compared. What is
not in an index yet is found all the same, more slowly.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import lancedb
from lancedb.query import MatchQuery

from refrag.errors import InvalidRequest, Overloaded
from refrag.retrieval.base import OTHER_ENCODER, CollectionInfo, Hit, PassageEncoderIdentity, Query
from refrag.retrieval.fusion import fuse_rankings
from refrag.retrieval.lance_rows import ENCODER_KEY, VECTOR, fields_of, hit_of, quote
from refrag.retrieval.lance_sql import where_clause

# Of each ranking, before they are merged.
MIN_CANDIDATES, CANDIDATES_PER_PASSAGE = 50, 2
# Partitions of the vector index that a search reads. An index has one per ROWS_PER_PARTITION rows (lance_writer.py), so
# that below 200,000 rows all are read, and the search is exact.
NUM_PROBES = 20
HIT_COLUMNS = ["id", "title", "text", "metadata"]
PAGE = 1000


class LanceReader:
    """Searches the collections under one address. Safe to share between threads."""

    def __init__(self, address: str, encoder: PassageEncoderIdentity | None) -> None:
        """address: a folder, or a URL such as s3://bucket/folder. encoder: None if there are no passage vectors."""
        self.address = address
        self.encoder = encoder
        with storage_errors("opened"):
            # Every search sees what was written before it, by whichever process.
            self._database = lancedb.connect(address, read_consistency_interval=timedelta(0))
        self._tables: dict[str, Any] = {}

    def names(self) -> list[str]:
        """Return the names of all collections, sorted."""
        with storage_errors("listed"):
            return list_names(self._database)

    def describe(self, name: str) -> CollectionInfo:
        table = self._open(name)
        with storage_errors("read"):
            return CollectionInfo(name, table.count_rows(), encoder_of(table), table.stats()["total_bytes"])

    def search(self, name: str, query: Query) -> list[Hit]:
        table = self._open(name)
        rankings = self._rank(name, table, query)
        if len(rankings) == 1:
            return rankings[0][: query.num_passages]
        found = {hit.id: hit for ranking in rankings for hit in ranking}
        fused = fuse_rankings([[hit.id for hit in ranking] for ranking in rankings])
        return [replace(found[each], score=score) for each, score in fused[: query.num_passages]]

    def _rank(self, name: str, table: Any, query: Query) -> list[list[Hit]]:
        """Return the hits of each kind of search that the mode asks for, best first."""
        if query.mode == "dense" and self.encoder is None:
            raise InvalidRequest(
                "search_mode is 'dense', and this server has no passage encoder, so it searches by words alone; leave "
                "search_mode out, or export with a checkpoint or a --passage-encoder that is a sentence encoder"
            )
        if query.mode != "text":
            require_encoder(name, encoder_of(table), self.encoder, "send search_mode 'text', or ")
        is_dense = query.mode != "text" and query.vector is not None
        limit = query.num_passages
        if is_dense and query.mode == "hybrid":
            limit = max(MIN_CANDIDATES, CANDIDATES_PER_PASSAGE * limit)
        where = where_clause(query.conditions, fields_of(table.schema))
        with storage_errors("searched"):
            rankings = [] if query.mode == "dense" else [_search_text(table, query, where, limit)]
            return [*rankings, _search_vectors(table, query, where, limit)] if is_dense else rankings

    def _open(self, name: str) -> Any:
        """Return the table, as it is now; raise InvalidRequest with the known names if there is none."""
        with storage_errors("opened"):
            if name in self._tables and is_there(self._tables[name]):
                return self._tables[name]
            known = self.names()
            if name not in known:
                self._tables.pop(name, None)
                raise InvalidRequest(unknown_collection(name, known))
            table = self._database.open_table(name)
            if not any(index.columns == ["text"] for index in table.list_indices()):
                raise Overloaded(f"collection {name!r} is being made; try again")
            self._tables[name] = table
            return table


def list_names(database: Any) -> list[str]:
    """Return the names of all tables, sorted."""
    names: list[str] = []
    token: str | None = None
    while True:
        page = database.list_tables(page_token=token, limit=PAGE)
        names += page.tables
        if (token := page.page_token) is None:
            return sorted(names)


def unknown_collection(name: str, known: Sequence[str]) -> str:
    listed = f"there are {', '.join(known)}" if known else "there is none yet; make one by `refrag index --collection`"
    return f"there is no collection {name!r}; {listed}"


def encoder_of(table: Any) -> str:
    """Return the fingerprint of the passage encoder that made the table's vectors, "" if it has none."""
    metadata = table.schema.metadata or {}
    return metadata.get(ENCODER_KEY, b"").decode()


def require_encoder(name: str, found: str, encoder: PassageEncoderIdentity | None, remedy: str) -> None:
    """Raise InvalidRequest unless the collection's vectors, or their absence, are those of this deployment."""
    expected = "" if encoder is None else encoder.fingerprint
    if found != expected:
        raise InvalidRequest(
            f"collection {name!r} {OTHER_ENCODER} {_told(found)}, and this server has {_told(expected)}; {remedy}"
            "index it again under another name, or drop it first (`refrag collections drop`)"
        )


@contextmanager
def storage_errors(act: str) -> Iterator[None]:
    """Turn what the engine raises where its storage fails into Overloaded: the same request may succeed later."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise Overloaded(f"the collections cannot be {act}: {error}; try again later") from error


def is_there(table: Any) -> bool:
    """Return whether the table still exists, and bring it up to date."""
    try:
        table.checkout_latest()
    except (OSError, RuntimeError, ValueError):
        return False
    return True


def _search_text(table: Any, query: Query, where: str | None, limit: int) -> list[Hit]:
    found = table.search(MatchQuery(query.text, "text"), query_type="fts").select([*HIT_COLUMNS, "_score"])
    rows = _run(found, where, limit)
    return [hit_of(row, row["_score"]) for row in sorted(rows, key=lambda row: (-row["_score"], row["id"]))]


def _search_vectors(table: Any, query: Query, where: str | None, limit: int) -> list[Hit]:
    found = table.search(query.vector, vector_column_name=VECTOR).distance_type("cosine").nprobes(NUM_PROBES)
    rows = _run(found.select([*HIT_COLUMNS, "_distance"]), where, limit)
    return [hit_of(row, 1 - row["_distance"]) for row in sorted(rows, key=lambda row: (row["_distance"], row["id"]))]


def _run(search: Any, where: str | None, limit: int) -> list[dict[str, Any]]:
    filtered = search if where is None else search.where(where, prefilter=True)
    rows: list[dict[str, Any]] = filtered.limit(limit).to_arrow().to_pylist()
    return rows


def _told(fingerprint: str) -> str:
    return f"the passage encoder {fingerprint}" if fingerprint else "no passage encoder"


def find_rows(table: Any, ids: Sequence[str], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the named columns of the rows with these ids."""
    if not ids:
        return []
    where = f"id IN ({', '.join(map(quote, ids))})"
    rows: list[dict[str, Any]] = table.search().where(where).select(list(columns)).limit(len(ids)).to_list()
    return rows
