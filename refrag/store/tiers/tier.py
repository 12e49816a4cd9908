"""What a tier of the store is: keys to bytes, many at a time. It may fail; the store knows what to do then."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class TierError(Exception):
    """The tier could not do what it was asked; whatever it holds may be asked for again later."""


class TierReplaced(TierError):
    """What it held was damaged and is gone; an empty one has taken its place and can be asked at once."""


@dataclass(frozen=True)
class Usage:
    """limit_bytes: None where the tier's own server sets it."""

    num_entries: int
    num_bytes: int
    limit_bytes: int | None


class Tier(Protocol):
    """A place for values that outlives the process."""

    name: str

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key, None where there is none."""

    def put(self, items: Mapping[bytes, bytes]) -> None:
        """Keep all of them; evict others if there is no room."""

    def delete(self, keys: Sequence[bytes]) -> None: ...

    def scan(self, prefix: bytes, cursor: bytes, count: int) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """About `count` entries whose keys begin so, and the cursor to go on with; both cursors are empty at the
        beginning and at the end. What is there throughout is told at least once.
        """

    def mark_live(self, fingerprint: bytes, now: float, seconds: float) -> None:
        """Note that vectors of this encoder are in use until `seconds` after `now`, in seconds of the Unix epoch."""

    def live(self, now: float) -> set[bytes]:
        """The fingerprints that are marked so."""

    def usage(self) -> Usage: ...

    def close(self) -> None: ...
