"""The protocol of the store's tiers: bytes by key, many at a time. A tier may fail; the store copes with that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class TierError(Exception):
    """A tier could not do what it was asked; it may be asked again later."""


class TierReplaced(TierError):
    """A tier's content was damaged and is gone; an empty tier has taken its place and can be asked at once."""


@dataclass(frozen=True)
class Usage:
    """The size of a tier's contents. limit_bytes: None where there is no limit."""

    num_entries: int
    num_bytes: int
    limit_bytes: int | None


class Tier(Protocol):
    """A place where values outlive the process. Methods raise TierError."""

    name: str

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key, None where there is none."""

    def put(self, items: Mapping[bytes, bytes]) -> None:
        """Store all items; evict others if there is no room."""

    def delete(self, keys: Sequence[bytes]) -> None: ...

    def scan(self, cursor: bytes, count: int) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Return about `count` entries, and the cursor to go on with.

        An empty cursor begins a scan, and ends it where it is returned. An entry that is there throughout the scan is
        returned at least once. Raises InvalidRequest for a cursor that cannot come from a scan of this tier.
        """

    def mark_live(self, fingerprint: bytes, now: float, seconds: float) -> None:
        """Mark the fingerprint as in use until `seconds` after `now`, in seconds of the Unix epoch."""

    def live(self, now: float) -> set[bytes]:
        """Return the fingerprints that are marked as in use at `now`."""

    def usage(self) -> Usage: ...

    def close(self) -> None: ...
