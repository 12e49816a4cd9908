"""A request's chunks, taken apart into what is stored and what is not, come together again as they were."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from store_helpers import FINGERPRINT

from refrag.store.forms import VectorForm
from refrag.store.keys import DIGEST_BYTES, digest_chunks
from refrag.store.lookup import look_up, new_rows, values_by_digest
from refrag.store.store import Store
from refrag.store.tiers.memory import MemoryTier

WIDTH = 6


def pack(kinds):
    """Return one chunk for each kind, all different.  INT32 (C, 4)"""
    return np.array([[kind, kind * kind, -1, -1] for kind in kinds], np.int32).reshape(-1, 4)


def encode(packed):
    """Return FP16 vectors as an encoder would make them, a different row for each kind of chunk.  (C, WIDTH)"""
    return np.stack([np.full(WIDTH, row[0] + 0.5, np.float16) for row in packed]) if len(packed) else _no_vectors()


def _no_vectors():
    return np.zeros((0, WIDTH), np.float16)


def store_with(kinds):
    store = Store(FINGERPRINT, VectorForm(WIDTH), MemoryTier(2**20), [])
    packed = pack(kinds)
    store.put(values_by_digest(digest_chunks(packed), encode(packed)))
    return store


KINDS = st.lists(st.integers(0, 8), max_size=12)


@given(kinds=KINDS, stored=KINDS)
def test_stored_and_encoded_vectors_come_together_as_one_for_each_chunk(kinds, stored):
    packed = pack(kinds)
    lookup = look_up(store_with(stored), packed)
    encoded = encode(packed[lookup.lacking])
    together = np.concatenate([lookup.stored.reshape(-1, WIDTH), encoded])
    assert np.array_equal(together[lookup.rows], encode(packed))
    assert len(lookup.lacking) == len(set(kinds) - set(stored)), "a chunk that comes twice is encoded once"
    assert len(lookup.stored) == len(set(kinds) & set(stored))


@given(kinds=KINDS, stored=KINDS)
def test_exactly_what_was_lacking_is_new(kinds, stored):
    packed = pack(kinds)
    lookup = look_up(store_with(stored), packed)
    encoded = encode(packed[lookup.lacking])
    digests = np.frombuffer(b"".join(lookup.digests), np.uint8).reshape(-1, DIGEST_BYTES)
    numbers, chunks = new_rows(lookup.rows, len(lookup.stored))
    new = values_by_digest([digest.tobytes() for digest in digests[chunks]], encoded[numbers])
    expected = pack(sorted(set(kinds) - set(stored)))
    assert new == values_by_digest(digest_chunks(expected), encode(expected))


def test_a_vector_that_overflowed_is_not_kept():
    packed = pack([1, 2, 3])
    vectors = encode(packed)
    vectors[1, 3] = np.inf
    vectors[2, 0] = np.nan
    store = store_with([])
    store.put(values_by_digest(digest_chunks(packed), vectors))
    assert store.find(digest_chunks(packed)) == [vectors[0].tobytes(), None, None]
