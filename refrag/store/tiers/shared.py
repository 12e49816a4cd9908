"""The third tier: Redis, shared by all replicas. Its own settings say what it evicts, and when (maxmemory-policy)."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from refrag.errors import InvalidRequest
from refrag.store.keys import FINGERPRINT_BYTES
from refrag.store.tiers.tier import TierError, Usage

# Hexadecimal, so that people can read them: refrag:value:<fingerprint>:<digest>
VALUE, LIVE = b"refrag:value:", b"refrag:live:"
# Redis runs one command at a time. Long writes and deletions are cut, so that others wait for one part at most.
MOST_PER_COMMAND = 4096
# Cursors of Redis are numbers of 64 bits.
MOST_PLACES = 2**64 - 1
MOST_DIGITS = len(str(MOST_PLACES))


class SharedTier:
    """Values in Redis. A lookup is one round trip for all its keys; a server out of reach costs `timeout_seconds`."""

    name = "shared"

    def __init__(self, url: str, timeout_seconds: float) -> None:
        self.url = url
        # Any: what its methods return depends on its options, which its types do not express.
        self._redis: Any = redis.Redis.from_url(
            url,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            # No retries: the store answers without this tier, and asks it again later.
            retry=Retry(NoBackoff(), 0),
        )

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._errors():
            return self._redis.mget([_name(key) for key in keys]) if keys else []

    def put(self, items: Mapping[bytes, bytes]) -> None:
        names = {_name(key): value for key, value in items.items()}
        with self._errors():
            for part in _parts(list(names), MOST_PER_COMMAND):
                self._redis.mset({name: names[name] for name in part})

    def delete(self, keys: Sequence[bytes]) -> None:
        with self._errors():
            for part in _parts([_name(key) for key in keys], MOST_PER_COMMAND):
                self._redis.unlink(*part)

    def scan(self, cursor: bytes, count: int) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Return entries as `Tier.scan` does; the cursor is Redis's own."""
        place = _read_cursor(cursor)
        with self._errors():
            following, names = self._redis.scan(place, match=VALUE + b"*", count=count)
            values = self._redis.mget(names) if names else []
        entries = [(_key(name), value) for name, value in zip(names, values, strict=True) if value is not None]
        return entries, b"" if following == 0 else str(following).encode()

    def mark_live(self, fingerprint: bytes, now: float, seconds: float) -> None:
        with self._errors():
            self._redis.set(LIVE + fingerprint.hex().encode(), str(now), ex=max(1, int(seconds)))

    def live(self, now: float) -> set[bytes]:
        """Return the fingerprints whose marks Redis has not let expire, by its own clock."""
        with self._errors():
            return {bytes.fromhex(name[len(LIVE) :].decode()) for name in self._redis.scan_iter(match=LIVE + b"*")}

    def usage(self) -> Usage:
        """Return the keys of the whole database and the memory of the whole server, others' included."""
        with self._errors():
            memory = self._redis.info("memory")
            return Usage(self._redis.dbsize(), memory["used_memory"], memory["maxmemory"] or None)

    def close(self) -> None:
        self._redis.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, OSError) as error:
            raise TierError(f"{self.url}: {error}") from error


def _read_cursor(cursor: bytes) -> int:
    if not cursor:
        return 0
    if len(cursor) > MOST_DIGITS or not cursor.isdigit() or int(cursor) > MOST_PLACES:
        raise InvalidRequest(
            f"cursor is {cursor[:MOST_DIGITS]!r}, which the shared tier has never returned; send the one that the "
            "operation before returned, or none to begin"
        )
    return int(cursor)


def _name(key: bytes) -> bytes:
    return VALUE + key.hex(":", -FINGERPRINT_BYTES).encode()


def _key(name: bytes) -> bytes:
    return bytes.fromhex(name[len(VALUE) :].replace(b":", b"").decode())


def _parts(names: Sequence[bytes], size: int) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]
