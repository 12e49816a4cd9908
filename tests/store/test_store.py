"""The tiers together: fast ones first, damaged values never, and no answer that waits for a tier that is down."""

import random
import threading

import pytest
from store_helpers import FINGERPRINT, FORM, OTHER, FakeTier, digest, vector, vectors

from refrag.store.store import MAX_PENDING_WRITES, RETRY_SECONDS, Store
from refrag.store.tiers.memory import MemoryTier
from refrag.store.tiers.tier import TierReplaced
from refrag.store.values import seal


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def tiers():
    return [FakeTier(), FakeTier()]


@pytest.fixture
def store(tiers, clock):
    store = Store(FINGERPRINT, FORM, MemoryTier(2**20), tiers, clock)
    yield store
    store.close()


def find(store, *numbers):
    return store.find([digest(number) for number in numbers])


def test_what_is_put_is_in_every_tier_and_found_in_the_first(store, tiers):
    assert store.put(vectors([1, 2]))
    assert find(store, 2, 3, 1, 2) == [vector(2), None, vector(1), vector(2)]
    assert [len(tier.entries) for tier in tiers] == [2, 2]
    assert (store.memory_counts.hits, store.memory_counts.misses) == (3, 1)
    assert store.tiers[0].counts.misses == 1


def test_what_a_slow_tier_has_is_found_sooner_the_next_time(store, tiers):
    key = FINGERPRINT + digest(1)
    tiers[1].put({key: seal(key, vector(1))})
    assert find(store, 1) == [vector(1)]
    store.wait_until_written()
    assert key in tiers[0].entries
    num_calls = tiers[0].num_calls
    assert find(store, 1) == [vector(1)]
    assert tiers[0].num_calls == num_calls


def test_a_damaged_value_is_not_found_and_does_not_stay(store, tiers):
    key = FINGERPRINT + digest(1)
    sealed = seal(key, vector(1))
    tiers[0].put({key: sealed[:-1] + b"\0"})
    tiers[1].put({key: sealed})
    assert find(store, 1) == [vector(1)]
    store.wait_until_written()
    assert store.tiers[0].counts.corrupted == 1
    assert tiers[0].entries[key] == sealed


def test_a_value_that_was_mended_meanwhile_stays(store, tiers):
    """Another process may have put it between finding the damage and deleting it."""
    key = FINGERPRINT + digest(1)
    tiers[0].put({key: b"damaged"})
    hold, held = threading.Event(), threading.Event()
    store._writer.submit(lambda: (held.set(), hold.wait(60)))
    assert held.wait(60)
    try:
        assert find(store, 1) == [None]
        tiers[0].put({key: seal(key, vector(1))})
    finally:
        hold.set()
    store.wait_until_written()
    assert find(store, 1) == [vector(1)]


def test_vectors_of_another_encoder_are_not_found(tiers, store):
    other = Store(OTHER, FORM, None, tiers)
    other.put(vectors([1]))
    assert find(store, 1) == [None]
    other.close()


def test_a_tier_that_fails_is_left_alone_for_a_while(store, tiers, clock):
    store.put(vectors([1]))
    store.memory.limit_bytes = 0
    store.memory.put({})
    tiers[0].fails = True
    num_calls = tiers[0].num_calls
    assert find(store, 1) == find(store, 1) == [vector(1)]
    store.wait_until_written()
    assert tiers[0].num_calls == num_calls + 1
    assert store.tiers[0].counts.errors == 1
    clock.now += RETRY_SECONDS
    tiers[0].fails = False
    num_hits = store.tiers[0].counts.hits
    assert find(store, 1) == [vector(1)]
    assert store.tiers[0].counts.hits == num_hits + 1


def test_a_tier_that_was_replaced_is_asked_again_at_once(store, tiers):
    def fail_once(items, put=tiers[0].put):
        tiers[0].put = put
        raise TierReplaced("damaged")

    tiers[0].put = fail_once
    assert store.put(vectors([1]))
    assert (store.tiers[0].counts.errors, len(tiers[0].entries)) == (1, 1)


def test_a_put_that_one_tier_could_not_take_says_so(store, tiers):
    tiers[1].fails = True
    assert not store.put(vectors([1]))
    assert (store.tiers[0].counts.written, store.tiers[1].counts.dropped) == (1, 1)


def test_what_is_put_later_is_computed_and_stored_in_the_background(store, tiers):
    caller = threading.get_ident()
    threads = []
    store.put_later(lambda: threads.append(threading.get_ident()) or vectors([1]))
    store.wait_until_written()
    assert threads != [caller]
    assert find(store, 1) == [vector(1)] and len(tiers[1].entries) == 1


def test_a_store_that_cannot_keep_up_lets_writes_be(store):
    hold, held = threading.Event(), threading.Event()
    store._writer.submit(lambda: (held.set(), hold.wait(60)))
    assert held.wait(60)
    try:
        for number in range(MAX_PENDING_WRITES + 5):
            store.put_later(lambda number=number: vectors([number]))
        assert store.num_refused == 5
    finally:
        hold.set()
    store.wait_until_written()


def test_work_that_fails_does_not_end_the_writer(store, caplog):
    store.put_later(lambda: 1 // 0)
    store.put_later(lambda: vectors([1]))
    store.wait_until_written()
    assert find(store, 1) == [vector(1)]
    assert "a background write to the store failed" in caplog.text


def test_verify_deletes_what_is_damaged(store, tiers):
    store.put(vectors(range(10)))
    for number in (3, 7):
        tiers[0].entries[FINGERPRINT + digest(number)] = b"damaged"
    checked, deleted, cursor = store.verify(store.tiers[0], b"", 100)
    assert (checked, deleted, cursor) == (10, 2, b"")
    assert len(tiers[0].entries) == 8


def test_prune_deletes_what_no_live_encoder_owns(store, tiers):
    owners = {name: name.encode() * 16 for name in "abc"}
    for owner in (FINGERPRINT, *owners.values()):
        other = Store(owner, FORM, None, tiers)
        other.put(vectors(range(5)))
        other.close()
    tiers[0].mark_live(owners["a"], now=2e9, seconds=1e9)
    checked, deleted, _ = store.prune(store.tiers[0], [owners["b"]], b"", 100)
    assert (checked, deleted) == (20, 5)
    assert {key[:16] for key in tiers[0].entries} == {FINGERPRINT, owners["a"], owners["b"]}


def test_a_store_without_tiers_finds_nothing_and_fails_nothing():
    store = Store(FINGERPRINT, FORM, None, [])
    assert store.put(vectors([1]))
    assert find(store, 1) == [None]
    store.close()


def test_whatever_happens_no_vector_is_wrong(tiers, clock):
    """Random puts and lookups while tiers fail, come back and are damaged."""
    rng = random.Random(0)
    store = Store(FINGERPRINT, FORM, MemoryTier(20_000), tiers, clock)
    num_found = 0
    for step in range(3000):
        clock.now += rng.random()
        tier = rng.choice(tiers)
        tier.fails = rng.random() < 0.3
        if tier.entries and rng.random() < 0.3:
            key = rng.choice(list(tier.entries))
            value = bytearray(tier.entries[key])
            value[rng.randrange(len(value))] ^= 1 + rng.randrange(255)
            tier.entries[key] = bytes(value)
        numbers = [rng.randrange(200) for _ in range(rng.randrange(6))]
        for number, found in zip(numbers, find(store, *numbers), strict=True):
            assert found in (None, vector(number))
            num_found += found is not None
        store.put_later(lambda numbers=numbers: vectors(numbers))
        if step % 20 == 0:
            # A writer that is never given a turn stores nothing.
            store.wait_until_written()
    store.close()
    assert num_found > 1000
    assert sum(guarded.counts.corrupted for guarded in store.tiers) > 10
