"""Publishes what the store does among Triton's metrics, by tier, by model that uses it, and by kind of value."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from refrag.serving.periodic import Periodic
from refrag.serving.triton import Metric
from refrag.store.store import Counts, GuardedTier, Store

FLUSH_SECONDS = 1.0
# How often the store marks its encoder as in use, and measures how much its tiers hold.
HEARTBEAT_SECONDS = 60.0
LOOKUP_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
DESCRIPTIONS = {
    "hits": "Values found in the tier",
    "misses": "Values not found in the tier",
    "corrupted": "Damaged values found in the tier, and deleted",
    "written": "Values written to the tier",
    "dropped": "Values not written because the tier failed",
    "errors": "Failures of the tier",
}


class StoreMetrics:
    """The store's metrics, updated by a thread that no answer waits for, and the store's heartbeat."""

    def __init__(self, store: Store, model: str) -> None:
        self.store = store
        self.counters = _counters(store, {"model": model, "kind": "vectors"})
        for other in store.others:
            self.counters += _counters(other, {"model": model, "kind": "tokens"})
        self.sizes = {guarded.tier.name: _TierSize(guarded, model) for guarded in store.tiers}
        labels = {"model": model}
        self.lookup = Metric(
            "HISTOGRAM", "refrag_store_lookup_seconds", "Seconds to look up a request's chunks", LOOKUP_BUCKETS, labels
        )
        self.refused = Metric(
            "COUNTER", "refrag_store_refused", "Background writes dropped because the queue was full", labels=labels
        )
        self.unsigned = Metric(
            "COUNTER", "refrag_store_unsigned", "New vectors without proof that this server made them", labels=labels
        )
        self.num_unsigned = self.num_told_unsigned = 0
        self.num_told_refused = 0
        self.lookup_seconds: deque[float] = deque()
        self.flush = Periodic("store-metrics", FLUSH_SECONDS, self._flush)
        self.heartbeat = Periodic("store-heartbeat", HEARTBEAT_SECONDS, self._beat, at_once=True)

    @contextmanager
    def time_lookup(self) -> Iterator[None]:
        """Time the block as one lookup."""
        start = time.perf_counter()
        yield
        self.lookup_seconds.append(time.perf_counter() - start)

    def count_unsigned(self, count: int) -> None:
        self.num_unsigned += count

    def close(self) -> None:
        self.heartbeat.close()
        self.flush.close()

    def _flush(self) -> None:
        for counters in self.counters:
            counters.flush()
        num_refused = sum(store.num_refused for store in (self.store, *self.store.others))
        if num_refused > self.num_told_refused:
            self.refused.add(num_refused - self.num_told_refused)
            self.num_told_refused = num_refused
        if self.num_unsigned > self.num_told_unsigned:
            self.unsigned.add(self.num_unsigned - self.num_told_unsigned)
            self.num_told_unsigned = self.num_unsigned
        for _ in range(len(self.lookup_seconds)):
            self.lookup.observe(self.lookup_seconds.popleft())

    def _beat(self) -> None:
        self.store.mark_live()
        for size in self.sizes.values():
            size.flush()


def _counters(store: Store, labels: dict[str, str]) -> list["_TierCounters"]:
    tiers = {guarded.tier.name: guarded.counts for guarded in store.tiers}
    counts = tiers if store.memory is None else {"memory": store.memory_counts, **tiers}
    return [_TierCounters(count, {"tier": name, **labels}) for name, count in counts.items()]


class _TierCounters:
    def __init__(self, counts: Counts, labels: dict[str, str]) -> None:
        self.counts, self.told = counts, asdict(counts)
        self.metrics = {
            name: Metric("COUNTER", f"refrag_store_{name}", description, labels=labels)
            for name, description in DESCRIPTIONS.items()
        }

    def flush(self) -> None:
        now = asdict(self.counts)
        for name, metric in self.metrics.items():
            if now[name] > self.told[name]:
                metric.add(now[name] - self.told[name])
        self.told = now


class _TierSize:
    def __init__(self, guarded: GuardedTier, model: str) -> None:
        labels = {"tier": guarded.tier.name, "model": model}
        self.guarded = guarded
        self.num_entries = Metric(
            "GAUGE", "refrag_store_entries", "Entries in the tier (Redis: in the whole database)", labels=labels
        )
        self.num_bytes = Metric(
            "GAUGE", "refrag_store_bytes", "Bytes taken by the tier (Redis: by the whole server)", labels=labels
        )

    def flush(self) -> None:
        usage = self.guarded.ask(self.guarded.tier.usage)
        if usage is not None:
            self.num_entries.set(usage.num_entries)
            self.num_bytes.set(usage.num_bytes)
