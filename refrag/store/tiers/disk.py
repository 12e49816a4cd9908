"""The second tier: LMDB on a local disk, read and written by several processes at once.

    <path>/CURRENT          number of the folder in use
    <path>/<number>/        an LMDB environment:
        vectors             number in order of arrival → key and value, so that new entries fill pages one after another
                            and evicting the oldest frees whole pages
        index               key → number
        live                fingerprint → until when it is in use

Files get damaged: by a full disk, an interrupted copy, somebody's rm. LMDB maps its file into memory, where reading
beyond a shortened end would kill the process. So the file is checked before each use, and once it was replaced or cut,
every process moves on to a new folder. For a cut to be seen, the file is as long as its map from the beginning, and
sparse behind what was written: LMDB alone would leave out free pages at the end, and such a file looks as if cut.
"""

import contextlib
import fcntl
import os
import shutil
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import lmdb

from refrag.store.tiers.tier import TierError, TierReplaced, Usage

CURRENT, LOCK = "CURRENT", "LOCK"
# The lock is held while a folder is opened or abandoned.
LOCK_SECONDS, LOCK_POLL_SECONDS = 5.0, 0.01
# Room besides what is kept: pages that running readers, or the transaction that frees them, still hold.
MAP_FACTOR, MAP_SLACK_BYTES = 2, 64 * 2**20
MAX_READERS = 512
# The share of the entries that is evicted each time the limit is reached, the oldest first.
EVICTED_SHARE = 1 / 16
META_PAGES = 2
# For the owner only: passages can be read from their tokens, and guessed from their vectors.
PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
NUMBER, TIME = struct.Struct(">Q"), struct.Struct(">d")
DAMAGES = (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError, lmdb.PanicError, lmdb.VersionMismatchError)


class DiskTier:
    """Values in LMDB, up to `limit_bytes`; beyond that, what was stored first is evicted."""

    name = "disk"

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self.path, self.limit_bytes = path, limit_bytes
        self._opened: _Opened | None = None
        # A process may open an LMDB file only once, even if several threads need it first.
        self._opening = threading.Lock()

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._transaction() as (transaction, opened):
            return [_find(transaction, opened, key) for key in keys]

    def put(self, items: Mapping[bytes, bytes]) -> None:
        with self._transaction(write=True) as (transaction, opened):
            number = _next_number(transaction, opened)
            for key, value in items.items():
                place = _bytes(transaction.get(key, db=opened.index))
                if place is None:
                    place, number = NUMBER.pack(number), number + 1
                    transaction.put(key, place, db=opened.index)
                    transaction.put(place, _join(key, value), db=opened.vectors, append=True)
                elif _find(transaction, opened, key) != value:
                    transaction.put(place, _join(key, value), db=opened.vectors)
            while _num_bytes(transaction, opened) > self.limit_bytes and number:
                number = _evict(transaction, opened)

    def delete(self, keys: Sequence[bytes]) -> None:
        with self._transaction(write=True) as (transaction, opened):
            for key in keys:
                place = transaction.pop(key, db=opened.index)
                if place is not None:
                    transaction.delete(place, db=opened.vectors)

    def scan(self, cursor: bytes, count: int) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Return entries as `Tier.scan` does; the cursor is the last key returned."""
        entries: list[tuple[bytes, bytes]] = []
        with self._transaction() as (transaction, opened), transaction.cursor(db=opened.index) as position:
            is_there = position.set_range(cursor)
            if is_there and cursor and position.key() == cursor:
                is_there = position.next()
            while is_there:
                if len(entries) == count:
                    return entries, entries[-1][0]
                key = bytes(position.key())
                entries.append((key, _find(transaction, opened, key) or b""))
                is_there = position.next()
        return entries, b""

    def mark_live(self, fingerprint: bytes, now: float, seconds: float) -> None:
        with self._transaction(write=True) as (transaction, opened):
            transaction.put(fingerprint, TIME.pack(now + seconds), db=opened.live)

    def live(self, now: float) -> set[bytes]:
        with self._transaction() as (transaction, opened), transaction.cursor(db=opened.live) as position:
            return {bytes(fingerprint) for fingerprint, until in position if TIME.unpack(until)[0] >= now}

    def usage(self) -> Usage:
        with self._transaction() as (transaction, opened):
            num_entries = transaction.stat(opened.index)["entries"]
            return Usage(num_entries, _num_bytes(transaction, opened), self.limit_bytes)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.environment.close()

    @contextlib.contextmanager
    def _transaction(self, write: bool = False) -> Iterator[tuple[lmdb.Transaction, "_Opened"]]:
        """Run the block in a transaction, which is committed as a whole or not at all; raise TierError."""
        try:
            opened = self._get_opened()
            try:
                opened.check_file()
                with opened.environment.begin(write=write) as transaction:
                    yield transaction, opened
            except DAMAGES as error:
                self._abandon(opened.number)
                raise self._replaced(error) from error
        except (lmdb.Error, OSError) as error:
            raise TierError(f"{self.path}: {error}") from error

    def _get_opened(self) -> "_Opened":
        with self._opening:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def _open(self) -> "_Opened":
        """Open the current folder; if it is damaged, make a new one current and raise TierReplaced."""
        self.path.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
        with self._lock():
            number = _read_current(self.path)
            try:
                return _open_folder(self.path, number, MAP_FACTOR * self.limit_bytes + MAP_SLACK_BYTES)
            except DAMAGES as error:
                self._leave(number)
                raise self._replaced(error) from error

    def _abandon(self, damaged: int) -> None:
        """Make a new folder current, unless somebody else has done so already; raise TierError if that fails."""
        # Held to the end: a thread that opened the folder before it is left would find it open in this process.
        with self._opening:
            # Not closed: another thread's transaction may still use the environment, and keeps it open until it ends.
            if self._opened is not None and self._opened.number == damaged:
                self._opened = None
            with self._lock():
                if _read_current(self.path) == damaged:
                    self._leave(damaged)

    def _leave(self, damaged: int) -> None:
        """Make the next folder current and delete the damaged one; the caller holds the lock."""
        try:
            _write_current(self.path, damaged + 1)
        except OSError as error:
            raise TierError(f"{self.path} is damaged, and no new folder can be made: {error}") from error
        shutil.rmtree(_folder(self.path, damaged), ignore_errors=True)

    def _replaced(self, error: Exception) -> TierReplaced:
        return TierReplaced(f"{self.path}: {error}; what it held is lost, and a new folder takes its place")

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the lock for the block, or until the process ends; raise OSError if another one keeps it too long."""
        with (self.path / LOCK).open("w") as lock:
            deadline = time.monotonic() + LOCK_SECONDS
            while not _try_lock(lock):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another process has kept {LOCK} for {LOCK_SECONDS:g} s")
                time.sleep(LOCK_POLL_SECONDS)
            yield


class _Opened:
    """An open environment with its databases, and its file's state when it was opened."""

    def __init__(self, environment: lmdb.Environment, file: Path, number: int) -> None:
        self.environment, self.file, self.number = environment, file, number
        self.opened_as = file.stat()
        self.vectors, self.index, self.live = map(environment.open_db, (b"vectors", b"index", b"live"))

    def check_file(self) -> None:
        """Raise CorruptedError if the file is gone, another one, or shorter than it was."""
        try:
            status = self.file.stat()
        except FileNotFoundError:
            raise lmdb.CorruptedError(f"{self.file} is gone") from None
        if status.st_ino != self.opened_as.st_ino or status.st_size < self.opened_as.st_size:
            raise lmdb.CorruptedError(f"{self.file} was replaced or cut")


def _open_folder(path: Path, number: int, map_bytes: int) -> _Opened:
    """Open the folder's environment, or raise one of DAMAGES if its file is damaged."""
    file = _folder(path, number) / "data.mdb"
    is_new = not file.exists()
    file.parent.mkdir(PRIVATE_FOLDER, exist_ok=True)
    environment = lmdb.open(
        str(file.parent),
        map_size=map_bytes,
        max_dbs=3,
        max_readers=MAX_READERS,
        mode=PRIVATE_FILE,
        # Commits survive a killed process; a power cut may cost the last transactions.
        metasync=False,
    )
    if not is_new:
        _check_length(file, environment)
    if file.stat().st_size < map_bytes:
        os.truncate(file, map_bytes)
    return _Opened(environment, file, number)


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _check_length(file: Path, environment: lmdb.Environment) -> None:
    """Raise CorruptedError if the file ends before the last page that its first pages name."""
    length = file.stat().st_size
    # The first pages must be there to be read at all.
    if length < META_PAGES * PAGE_BYTES or length < (environment.info()["last_pgno"] + 1) * PAGE_BYTES:
        raise lmdb.CorruptedError(f"{file} was cut to {length} bytes")


def _bytes(value: Any) -> bytes | None:
    """Narrow the type: LMDB returns bytes unless views are asked for, which its types do not express."""
    return cast(bytes | None, value)


def _folder(path: Path, number: int) -> Path:
    return path / f"{number:06d}"


def _read_current(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int((path / CURRENT).read_text())
    return 0


def _write_current(path: Path, number: int) -> None:
    """Write the number atomically."""
    written = path / f"{CURRENT}.new"
    written.write_text(f"{number}\n")
    written.replace(path / CURRENT)


def _join(key: bytes, value: bytes) -> bytes:
    return bytes([len(key)]) + key + value


def _split(entry: bytes) -> tuple[bytes, bytes]:
    return entry[1 : 1 + entry[0]], entry[1 + entry[0] :]


def _find(transaction: lmdb.Transaction, opened: _Opened, key: bytes) -> bytes | None:
    place = transaction.get(key, db=opened.index)
    entry = None if place is None else _bytes(transaction.get(place, db=opened.vectors))
    return entry and _split(entry)[1]


def _next_number(transaction: lmdb.Transaction, opened: _Opened) -> int:
    with transaction.cursor(db=opened.vectors) as position:
        return NUMBER.unpack(position.key())[0] + 1 if position.last() else 0


def _num_bytes(transaction: lmdb.Transaction, opened: _Opened) -> int:
    stats = [transaction.stat(db) for db in (opened.vectors, opened.index)]
    return sum(stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]) for stat in stats)


def _evict(transaction: lmdb.Transaction, opened: _Opened) -> int:
    """Delete a share of the entries, the oldest first, and return how many are left."""
    count = max(1, int(EVICTED_SHARE * transaction.stat(opened.vectors)["entries"]))
    with transaction.cursor(db=opened.vectors) as position:
        for _ in range(count):
            if not position.first():
                break
            transaction.delete(_split(bytes(position.value()))[0], db=opened.index)
            position.delete()
    return transaction.stat(opened.vectors)["entries"]
