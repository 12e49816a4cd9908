import tracemalloc

from store_helpers import digest, vector

from refrag.store.tiers.memory import OVERHEAD_BYTES, MemoryTier

ENTRY_BYTES = len(vector(0)) + OVERHEAD_BYTES


def put(tier, *numbers):
    tier.put({digest(number): vector(number) for number in numbers})


def numbers_in(tier, numbers):
    return [number for number, value in zip(numbers, tier.get([digest(n) for n in numbers]), strict=True) if value]


def test_the_least_recently_used_goes_first():
    tier = MemoryTier(3 * ENTRY_BYTES)
    put(tier, 1, 2, 3)
    assert numbers_in(tier, [1]) == [1]
    put(tier, 4)
    assert numbers_in(tier, [1, 2, 3, 4]) == [1, 3, 4]
    assert tier.usage().num_bytes == 3 * ENTRY_BYTES


def test_what_is_put_again_is_counted_once():
    tier = MemoryTier(10 * ENTRY_BYTES)
    put(tier, 1)
    put(tier, 1)
    assert (tier.usage().num_entries, tier.usage().num_bytes) == (1, ENTRY_BYTES)


def test_what_is_larger_than_the_limit_is_not_kept():
    tier = MemoryTier(ENTRY_BYTES - 1)
    put(tier, 1)
    assert tier.usage().num_entries == tier.usage().num_bytes == 0


def test_the_limit_is_what_it_takes():
    tier = MemoryTier(2**30)
    tracemalloc.start()
    put(tier, *range(20_000))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.7 < taken / tier.usage().num_bytes < 1.1
