"""The first tier: values in this process, of which the least recently used are evicted."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from refrag.store.tiers.tier import Usage

# Per entry: the dictionary's slot, the key, and the objects around key and vector; measured with tracemalloc.
OVERHEAD_BYTES = 160


class MemoryTier:
    """Values in memory. They cannot fail or be damaged, so this is no Tier, and it holds values without checksums."""

    name = "memory"

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._lock:
            found = [self._entries.get(key) for key in keys]
            for key, vector in zip(keys, found, strict=True):
                if vector is not None:
                    self._entries.move_to_end(key)
            return found

    def put(self, items: Mapping[bytes, bytes]) -> None:
        with self._lock:
            for key, vector in items.items():
                if key not in self._entries:
                    self._num_bytes += len(vector) + OVERHEAD_BYTES
                self._entries[key] = vector
                self._entries.move_to_end(key)
            while self._num_bytes > self.limit_bytes:
                _, evicted = self._entries.popitem(last=False)
                self._num_bytes -= len(evicted) + OVERHEAD_BYTES

    def usage(self) -> Usage:
        with self._lock:
            return Usage(len(self._entries), self._num_bytes, self.limit_bytes)
