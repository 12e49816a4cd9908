"""The client of the server's store of chunk vectors: fills it ahead of time, looks into it, clears it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refrag_client.operations import OperationsClient, strings
from refrag_client.tensors import Response


@dataclass(frozen=True)
class IndexReport:
    """Counts of one indexing request.

    num_chunks: all chunks of the passages, with num_tokens tokens. num_encoded: those that the store lacked, whose
    vectors took num_bytes.
    """

    fingerprint: str
    num_chunks: int
    num_tokens: int
    num_encoded: int
    num_bytes: int


@dataclass(frozen=True)
class TierReport:
    """The contents of a tier, or the error that hides them. limit_bytes: None where the tier has none of its own."""

    name: str
    num_entries: int | None
    num_bytes: int | None
    limit_bytes: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class StoreReport:
    """The state of the store. fingerprint: that of the server's encoder; only vectors of this encoder are served."""

    fingerprint: str
    chunk_size: int
    tiers: tuple[TierReport, ...]


@dataclass(frozen=True)
class Deletions:
    """Counts of one page: the values that were looked at, and how many of them were deleted."""

    num_checked: int
    num_deleted: int


@dataclass(frozen=True, eq=False)
class Cut:
    """The chunks of some texts.

    spans: text, first character and the one behind the last of each chunk, INT32 (C, 3).
    """

    spans: np.ndarray
    num_tokens: int


@dataclass(frozen=True, eq=False)
class Encoded:
    """The chunks of some texts with their vectors, FP16 (C, E), as the store keeps them."""

    cut: Cut
    vectors: np.ndarray


class StoreClient(OperationsClient):
    """A client of the model `chunk_store` on one server, safe to share between threads. Methods raise RefragError."""

    default_model = "chunk_store"

    def index(self, passages: Iterable[str]) -> IndexReport:
        """Encode those chunks of the passages that the store lacks, and return once all of them are committed."""
        return IndexReport(**self._ask("index", passages=strings(passages))[0])

    def stats(self) -> StoreReport:
        result, _ = self._ask("stats")
        return StoreReport(
            result["fingerprint"], result["chunk_size"], tuple(TierReport(**tier) for tier in result["tiers"])
        )

    def cut(self, texts: Iterable[str]) -> Cut:
        """Return where the chunks of the texts begin and end; nothing is encoded."""
        return _read_cut(*self._ask("cut", passages=strings(texts)))

    def encode(self, texts: Iterable[str]) -> Encoded:
        """Return the chunks of the texts with their vectors; nothing is stored."""
        result, response = self._ask("encode", passages=strings(texts))
        return Encoded(_read_cut(result, response), response.array("chunk_vectors"))

    def verify(self, tier: str) -> Iterator[Deletions]:
        """Check every value of a tier, delete those that are damaged, and yield the counts of each page."""
        yield from self._pages("verify", tier=strings([tier]))

    def prune(self, tier: str, keep: Sequence[str] = ()) -> Iterator[Deletions]:
        """Delete vectors of encoders that no server has had for a day, except those whose fingerprints are in `keep`.

        Yields the counts of each page.
        """
        kept = {"keep": strings(keep)} if keep else {}
        yield from self._pages("prune", tier=strings([tier]), **kept)

    def _pages(self, operation: str, **inputs: np.ndarray) -> Iterator[Deletions]:
        cursor: np.ndarray | None = None
        while cursor is None or cursor.size:
            place = {} if cursor is None else {"cursor": cursor}
            result, response = self._ask(operation, **inputs, **place)
            yield Deletions(**result)
            cursor = response.array("next_cursor")


def _read_cut(result: Mapping[str, Any], response: Response) -> Cut:
    return Cut(response.array("chunk_spans"), result["num_tokens"])
