"""The client of the server's store of chunk vectors: fills it ahead of time, looks into it, clears it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from refrag_client.operations import OperationsClient, strings
from refrag_client.tls import Tls


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


class StoreClient(OperationsClient):
    """A client of the model `chunk_store` on one server, safe to share between threads. Methods raise RefragError."""

    def __init__(
        self,
        url: str = "127.0.0.1:8001",
        *,
        model: str = "chunk_store",
        timeout_seconds: float | None = 600.0,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
        keepalive_seconds: float | None = None,
        max_message_bytes: int | None = None,
    ) -> None:
        super().__init__(
            url,
            model=model,
            timeout_seconds=timeout_seconds,
            tls=tls,
            headers=headers,
            keepalive_seconds=keepalive_seconds,
            max_message_bytes=max_message_bytes,
        )

    def index(self, passages: Iterable[str]) -> IndexReport:
        """Encode those chunks of the passages that the store lacks, and return once all of them are committed."""
        return IndexReport(**self._ask("index", passages=strings(passages))[0])

    def stats(self) -> StoreReport:
        result, _ = self._ask("stats")
        return StoreReport(
            result["fingerprint"], result["chunk_size"], tuple(TierReport(**tier) for tier in result["tiers"])
        )

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
