"""The tiers as one store. It returns what it finds; a tier that is down, full or damaged costs time, not an answer."""

import copy
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from refrag.store.forms import Form
from refrag.store.keys import owner_of
from refrag.store.tiers.memory import MemoryTier
from refrag.store.tiers.tier import Tier, TierError, TierReplaced
from refrag.store.values import open_sealed, seal
from refrag.store.writer import BackgroundWriter

log = logging.getLogger(__name__)

T = TypeVar("T")

# How long a tier that failed is left alone, so that not every request pays its timeout.
RETRY_SECONDS = 1.0
MAX_PENDING_WRITES = 256
# How long `prune` spares an encoder's vectors after a server last marked the encoder as in use.
LIVE_SECONDS = 24 * 3600.0


@dataclass
class Counts:
    """Counts of values found, not found, found damaged, written and not written, and of the tier's failures."""

    hits: int = 0
    misses: int = 0
    corrupted: int = 0
    written: int = 0
    dropped: int = 0
    errors: int = 0


@dataclass
class Rest:
    """The time until which a tier is left alone by all stores that share it."""

    ends_at: float = 0.0


@dataclass
class GuardedTier:
    """A tier that may fail, with counts of what came of asking it."""

    tier: Tier
    clock: Callable[[], float]
    rest: Rest = field(default_factory=Rest)
    counts: Counts = field(default_factory=Counts)

    def ask(self, action: Callable[[], T]) -> T | None:
        """Return the action's result, or None if the tier fails, or is left alone because it failed lately."""
        if self.clock() < self.rest.ends_at:
            return None
        try:
            return self.insist(action)
        except TierError as error:
            self._note(error)
            self.rest.ends_at = self.clock() + RETRY_SECONDS
            return None

    def insist(self, action: Callable[[], T]) -> T:
        """Return the action's result, tried again if an empty tier took a damaged one's place; raise TierError."""
        try:
            return action()
        except TierReplaced as error:
            self._note(error)
            return action()

    def _note(self, error: TierError) -> None:
        self.counts.errors += 1
        log.warning("%s tier of the store: %s", self.tier.name, error)


class Store:
    """The values of one fingerprint, as bytes by digest.

    For an encoder's fingerprint these are chunk vectors by the chunk's tokens. A store `beside` it, in the same tiers,
    has a tokenizer's fingerprint and holds passages' tokens by the passage.

    form: of every value; one that is found in another form counts as damaged.
    """

    def __init__(
        self,
        fingerprint: bytes,
        form: Form,
        memory: MemoryTier | None,
        tiers: Sequence[Tier],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fingerprint, self.form, self.memory = fingerprint, form, memory
        self.memory_counts = Counts()
        self.tiers = [GuardedTier(tier, clock) for tier in tiers]
        self.others: list[Store] = []
        # Background writes dropped because the queue was full.
        self.num_refused = 0
        self._writer = BackgroundWriter(MAX_PENDING_WRITES)

    def beside(self, fingerprint: bytes, form: Form) -> "Store":
        """Return a store of another fingerprint in the same tiers, with its own counts; close this one to close it."""
        other = copy.copy(self)
        other.fingerprint, other.form, other.others = fingerprint, form, []
        other.memory_counts, other.num_refused = Counts(), 0
        other.tiers = [GuardedTier(guarded.tier, guarded.clock, guarded.rest) for guarded in self.tiers]
        self.others.append(other)
        return other

    def find(self, digests: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each digest, None where no tier has an intact one."""
        keys = [self.fingerprint + digest for digest in digests]
        found = self._find_in_memory(keys)
        for number, guarded in enumerate(self.tiers):
            missing = list(dict.fromkeys(key for key, vector in zip(keys, found, strict=True) if vector is None))
            if not missing:
                break
            intact = self._find_in_tier(guarded, missing)
            if intact:
                found = [intact.get(key) if vector is None else vector for key, vector in zip(keys, found, strict=True)]
                self._remember(intact, self.tiers[:number])
        return found

    def put(self, vectors: Mapping[bytes, bytes]) -> bool:
        """Store the vectors by digest, and return whether every tier has them now.

        Those that have not the store's form, such as a vector that overflowed, are left out.
        """
        fit = self.form.fit(list(vectors.values()))
        items = {
            self.fingerprint + digest: vector
            for (digest, vector), fits in zip(vectors.items(), fit, strict=True)
            if fits
        }
        if self.memory is not None:
            self.memory.put(items)
        return _write(self.tiers, items)

    def put_later(self, vectors: Callable[[], Mapping[bytes, bytes]]) -> None:
        """Queue the vectors to be computed and stored; they are dropped if the queue is full."""
        self._write_later(lambda: self.put(vectors()))

    def verify(self, tier: GuardedTier, cursor: bytes, count: int) -> tuple[int, int, bytes]:
        """Check about `count` values from the cursor on, and delete the damaged ones.

        Values of other fingerprints than ours, whose form is not known, are judged by their checksum alone.
        Returns how many were checked, how many deleted, and the next cursor; raises TierError.
        """
        forms = {store.fingerprint: store.form for store in (self, *self.others)}
        entries, following = tier.insist(lambda: tier.tier.scan(cursor, count))
        damaged = [key for owner, values in _by_owner(entries).items() for key in _damaged(values, forms.get(owner))]
        tier.insist(lambda: tier.tier.delete(damaged))
        tier.counts.corrupted += len(damaged)
        return len(entries), len(damaged), following

    def prune(self, tier: GuardedTier, kept: Iterable[bytes], cursor: bytes, count: int) -> tuple[int, int, bytes]:
        """Check about `count` values from the cursor on, and delete those of fingerprints neither in use nor `kept`.

        Returns how many were checked, how many deleted, and the next cursor; raises TierError.
        """
        ours = {self.fingerprint, *(other.fingerprint for other in self.others)}
        owners = {*ours, *kept, *tier.insist(lambda: tier.tier.live(time.time()))}
        entries, following = tier.insist(lambda: tier.tier.scan(cursor, count))
        orphans = [key for key, _ in entries if owner_of(key) not in owners]
        tier.insist(lambda: tier.tier.delete(orphans))
        return len(entries), len(orphans), following

    def mark_live(self) -> None:
        """Mark the fingerprints as in use, in every tier, so that no server prunes their values."""
        for store in (self, *self.others):
            for guarded in store.tiers:
                guarded.ask(partial(guarded.tier.mark_live, store.fingerprint, time.time(), LIVE_SECONDS))

    def wait_until_written(self) -> None:
        self._writer.wait()

    def close(self) -> None:
        """Finish the queued writes and close the tiers."""
        self._writer.close()
        for guarded in self.tiers:
            guarded.tier.close()

    def _find_in_memory(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if self.memory is None:
            return [None] * len(keys)
        found = self.memory.get(keys)
        num_hits = sum(vector is not None for vector in found)
        self.memory_counts.hits += num_hits
        self.memory_counts.misses += len(keys) - num_hits
        return found

    def _find_in_tier(self, guarded: GuardedTier, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        values = guarded.ask(lambda: guarded.tier.get(keys))
        if values is None:
            return {}
        found = {key: value for key, value in zip(keys, values, strict=True) if value is not None}
        intact = _open_intact(found, self.form)
        guarded.counts.hits += len(intact)
        guarded.counts.misses += len(keys) - len(found)
        if len(intact) < len(found):
            guarded.counts.corrupted += len(found) - len(intact)
            damaged = [key for key in found if key not in intact]
            self._write_later(lambda: _delete_damaged(guarded, damaged, self.form))
        return intact

    def _remember(self, items: Mapping[bytes, bytes], faster: Sequence[GuardedTier]) -> None:
        """Copy what a slower tier had into the faster ones."""
        if self.memory is not None:
            self.memory.put(items)
        if faster:
            self._write_later(lambda: _write(faster, items))

    def _write_later(self, work: Callable[[], object]) -> None:
        if not self._writer.submit(work):
            self.num_refused += 1


def _write(tiers: Sequence[GuardedTier], items: Mapping[bytes, bytes]) -> bool:
    """Write the items to all tiers, and return whether every tier took them."""
    sealed = {key: seal(key, vector) for key, vector in items.items()}
    are_written = [_write_to(guarded, sealed) for guarded in tiers]
    return all(are_written)


def _write_to(guarded: GuardedTier, sealed: Mapping[bytes, bytes]) -> bool:
    def put() -> bool:
        guarded.tier.put(sealed)
        return True

    is_written = guarded.ask(put) is not None
    if is_written:
        guarded.counts.written += len(sealed)
    else:
        guarded.counts.dropped += len(sealed)
    return is_written


def _open_intact(entries: Mapping[bytes, bytes], form: Form | None) -> dict[bytes, bytes]:
    """Return the opened values of those entries that are what was sealed and, where a form is given, have it."""
    opened = {key: open_sealed(key, value) for key, value in entries.items()}
    intact = {key: value for key, value in opened.items() if value is not None}
    if form is None:
        return intact
    fit = form.fit(list(intact.values()))
    return {key: value for (key, value), fits in zip(intact.items(), fit, strict=True) if fits}


def _damaged(entries: Mapping[bytes, bytes], form: Form | None) -> list[bytes]:
    intact = _open_intact(entries, form)
    return [key for key in entries if key not in intact]


def _by_owner(entries: Iterable[tuple[bytes, bytes]]) -> dict[bytes, dict[bytes, bytes]]:
    """Return the entries of each fingerprint by their keys."""
    owned: defaultdict[bytes, dict[bytes, bytes]] = defaultdict(dict)
    for key, value in entries:
        owned[owner_of(key)][key] = value
    return owned


def _delete_damaged(guarded: GuardedTier, keys: Sequence[bytes], form: Form) -> None:
    """Delete the values, unless another process has put intact ones in their place by now."""

    def delete() -> None:
        found = {key: value for key, value in zip(keys, guarded.tier.get(keys), strict=True) if value is not None}
        guarded.tier.delete(_damaged(found, form))

    guarded.ask(delete)
