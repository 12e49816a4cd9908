from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refrag.engine.block_pool import BlockPool, runs_of


def test_blocks_lie_together_where_they_can():
    pool = BlockPool(12, 4)
    first, second = pool.allocate([], 3), pool.allocate([], 4)
    assert (first, second) == ([0, 1, 2], [3, 4, 5, 6])
    pool.free(first)
    # Two fit into the gap; four go to the longer run behind.
    assert pool.allocate([], 4) == [7, 8, 9, 10]
    assert pool.allocate([], 2) == [0, 1]


def test_too_small_gaps_are_used_together():
    pool = BlockPool(8, 4)
    tables = [pool.allocate([], 2) for _ in range(4)]
    pool.free(tables[0])
    pool.free(tables[2])
    assert sorted(pool.allocate([], 4)) == [0, 1, 4, 5]


def test_a_published_block_outlives_its_holder():
    pool = BlockPool(4, 4)
    blocks = pool.allocate([], 2)
    pool.publish(blocks[0], b"a")
    pool.free(blocks)
    assert pool.find([b"a", b"b"]) == [blocks[0]]
    assert pool.num_available == 4
    again = pool.allocate(pool.find([b"a"]), 2)
    assert again[0] == blocks[0]
    pool.check_integrity([again])


def test_the_longest_unused_content_is_evicted_first_and_ends_before_beginnings():
    pool = BlockPool(4, 4)
    old, new = pool.allocate([], 2), pool.allocate([], 2)
    for table, keys in ((old, [b"a", b"b"]), (new, [b"c", b"d"])):
        for block, key in zip(table, keys, strict=True):
            pool.publish(block, key)
    pool.free(old)
    pool.free(new)
    pool.allocate([], 1)
    assert [pool.find([key]) != [] for key in (b"a", b"b", b"c", b"d")] == [True, False, True, True]


def test_shared_blocks_are_not_counted_as_room():
    pool = BlockPool(4, 4)
    blocks = pool.allocate([], 2)
    for block, key in zip(blocks, (b"a", b"b"), strict=True):
        pool.publish(block, key)
    pool.free(blocks)
    other = pool.allocate([], 2)
    assert pool.fits(blocks, 2) and not pool.fits(blocks, 3)
    pool.free(other)
    assert pool.fits(blocks, 4)


def test_the_same_content_twice_is_published_once():
    pool = BlockPool(4, 4)
    first, second = pool.allocate([], 1), pool.allocate([], 1)
    pool.publish(first[0], b"a")
    pool.publish(second[0], b"a")
    pool.check_integrity([first, second])
    assert pool.find([b"a"]) == first


def test_a_lost_block_is_found_out():
    pool = BlockPool(4, 4)
    pool.allocate([], 2)
    with pytest.raises(AssertionError, match="held by sequences"):
        pool.check_integrity([])


def test_a_block_in_two_states_is_found_out():
    pool = BlockPool(4, 4)
    table = pool.allocate([], 2)
    pool.idle[table[0]] = None
    with pytest.raises(AssertionError, match="2 blank \\+ 1 idle \\+ 2 held = 5 != 4 blocks"):
        pool.check_integrity([table])


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5), st.booleans()), max_size=40))
def test_no_block_is_ever_lost(orders):
    """Random holders of random prefixes, of few contents, so that blocks are shared, evicted and found again."""
    pool, tables = BlockPool(16, 4), []
    for size, content, let_go in orders:
        keys = [bytes([content, index]) for index in range(size)]
        shared = pool.find(keys)
        if pool.fits(shared, size):
            tables.append(pool.allocate(shared, size))
            for block, key in zip(tables[-1], keys, strict=True):
                pool.publish(block, key)
        if let_go and tables:
            pool.free(tables.pop(content % len(tables)))
        pool.check_integrity(tables)
        assert all(len(set(table)) == len(table) for table in tables)
    for table in tables:
        pool.free(table)
    assert pool.num_available == pool.num_blocks


@given(st.lists(st.booleans(), max_size=30))
def test_runs_are_the_true_stretches(mask):
    runs = runs_of(np.array(mask, bool))
    assert [index for start, stop in runs for index in range(start, stop)] == [i for i, one in enumerate(mask) if one]
    assert all(earlier[1] < later[0] for earlier, later in pairwise(runs))
