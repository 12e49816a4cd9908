"""Keeps account of the KV cache's blocks: counted references, reuse by content, long runs where possible.

A block is in one of three states:

    blank   held by nobody, and its content is of no use
    held    by one sequence or, if its content is published, by several
    idle    held by nobody, but published: it may be found again, or evicted, the longest unused first
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

Run = tuple[int, int]


class BlockPool:
    """The blocks by number; the tensors behind them belong to `KVCache`."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.references = [0] * num_blocks
        self.keys: list[bytes | None] = [None] * num_blocks
        self.published: dict[bytes, int] = {}
        self.idle: OrderedDict[int, None] = OrderedDict()
        self.is_blank = np.ones(num_blocks, bool)
        self.num_blank = num_blocks

    @property
    def num_available(self) -> int:
        return self.num_blank + len(self.idle)

    def blocks_for(self, num_slots: int) -> int:
        """Return how many blocks hold that many slots."""
        return -(-num_slots // self.block_size)

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """Return the published blocks for the longest prefix of `keys` that has them all."""
        found = []
        for key in keys:
            block = self.published.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def fits(self, shared: Sequence[int], num_blocks: int) -> bool:
        """Return whether `allocate` can be called with these arguments."""
        return num_blocks - len(shared) <= self.num_available - sum(block in self.idle for block in shared)

    def allocate(self, shared: Sequence[int], num_blocks: int) -> list[int]:
        """Hold and return `num_blocks` blocks: the published ones in `shared`, then others in as few runs as can be.

        Idle blocks are evicted where blank ones do not suffice. The caller has asked `fits`.
        """
        assert self.fits(shared, num_blocks), f"{num_blocks} blocks asked for, {self.num_available} available"
        for block in shared:
            self.idle.pop(block, None)
            self.references[block] += 1
        return [*shared, *self._take_blank(num_blocks - len(shared))]

    def free(self, blocks: Sequence[int]) -> None:
        """Drop one reference to each block. The last ones become idle first, so that beginnings are evicted last."""
        for block in reversed(blocks):
            self.references[block] -= 1
            if self.references[block] == 0:
                if self.keys[block] is None:
                    self._make_blank(block)
                else:
                    self.idle[block] = None

    def publish(self, block: int, key: bytes) -> None:
        """Let a held block be found by its content, unless another with the same content is published already."""
        if key not in self.published and self.keys[block] is None:
            self.published[key] = block
            self.keys[block] = key

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless the sequences' block tables account for every block exactly."""
        held = Counter(block for table in tables for block in table)
        references = {block: count for block, count in enumerate(self.references) if count}
        assert held == references, f"held by sequences {dict(held)} != references {references}"
        num_blank = int(self.is_blank.sum())
        total = num_blank + len(self.idle) + len(held)
        assert num_blank == self.num_blank, f"blank {num_blank} != counted {self.num_blank}"
        assert total == self.num_blocks, (
            f"{num_blank} blank + {len(self.idle)} idle + {len(held)} held = {total} != {self.num_blocks} blocks"
        )
        assert not any(self.is_blank[block] or self.references[block] for block in self.idle), "an idle block is in use"
        known = {key: block for block, key in enumerate(self.keys) if key is not None}
        assert known == self.published, f"keys of blocks {len(known)} != published keys {len(self.published)}"
        assert not any(self.is_blank[block] for block in known.values()), "a blank block is published"

    def _take_blank(self, count: int) -> list[int]:
        while self.num_blank < count:
            self._evict()
        taken: list[int] = []
        while len(taken) < count:
            taken += self._take_run(count - len(taken))
        return taken

    def _take_run(self, count: int) -> range:
        """Take up to `count` blank blocks: of the shortest run that is long enough, or else all of the longest one."""
        runs = runs_of(self.is_blank)
        long_enough = [run for run in runs if run[1] - run[0] >= count]
        start, stop = min(long_enough, key=_length) if long_enough else max(runs, key=_length)
        taken = range(start, min(stop, start + count))
        self.is_blank[taken.start : taken.stop] = False
        self.num_blank -= len(taken)
        for block in taken:
            self.references[block] = 1
        return taken

    def _evict(self) -> None:
        block, _ = self.idle.popitem(last=False)
        key = self.keys[block]
        assert key is not None
        del self.published[key]
        self.keys[block] = None
        self._make_blank(block)

    def _make_blank(self, block: int) -> None:
        self.is_blank[block] = True
        self.num_blank += 1


def slot_runs(blocks: Sequence[int], block_size: int) -> list[Run]:
    """Return the runs [start, stop), in slots of the pool, of a table's blocks in order; neighbours share a run."""
    runs: list[Run] = []
    for block in blocks:
        start, stop = block * block_size, (block + 1) * block_size
        if runs and runs[-1][1] == start:
            runs[-1] = runs[-1][0], stop
        else:
            runs.append((start, stop))
    return runs


def clip_runs(runs: Iterable[Run], start: int, stop: int) -> list[Run]:
    """Return the runs of a sequence's slots [start, stop), where `runs` hold all its slots from the first."""
    clipped, passed = [], 0
    for first, last in runs:
        begin, end = first + max(0, start - passed), min(last, first + stop - passed)
        if begin < end:
            clipped.append((begin, end))
        passed += last - first
    return clipped


def runs_of(mask: np.ndarray) -> list[Run]:
    """Return the bounds [start, stop) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _length(run: Run) -> int:
    return run[1] - run[0]
