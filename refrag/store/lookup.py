"""Splits a request's chunks into those that the store has and those to encode, and joins their vectors again.

chunks of the request    A B C B D          the store has A and C
stored vectors           A C                row of each chunk, stored vectors first:  A 0   B 2   C 1   B 2   D 3
encoded vectors          B D
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refrag.store.keys import digest_chunks
from refrag.store.store import Store
from refrag.store.values import are_storable

# C context chunks, K tokens per chunk, E encoder width
# H different chunks that the store has, M that it lacks


@dataclass(frozen=True)
class Lookup:
    """The chunks of a request that the store has, and those that it lacks.

    stored: the vectors found, FP16 (H, E).
    lacking: numbers of the M chunks to encode; of equal chunks, only the first is listed.
    rows: INT32 (C,), each chunk's row in the stored vectors followed by the encoded ones.
    digests: the digest of each chunk, C of them.
    """

    stored: np.ndarray
    lacking: list[int]
    rows: np.ndarray
    digests: list[bytes]


# For a request that needs no vectors: nothing is stored, nothing lacking.
NOTHING_NEEDED = Lookup(np.zeros((0, 0), np.float16), [], np.zeros(0, np.int32), [])


def look_up(store: Store, packed: np.ndarray) -> Lookup:
    """Look up all chunks of a request at once; equal chunks are looked up, and encoded, once.  packed: INT32 (C, K)"""
    digests = digest_chunks(packed)
    firsts: dict[bytes, int] = {}
    for number, digest in enumerate(digests):
        firsts.setdefault(digest, number)
    vectors = dict(zip(firsts, store.find(list(firsts)), strict=True))
    found = [vector for vector in vectors.values() if vector is not None]
    lacking = [digest for digest, vector in vectors.items() if vector is None]
    has = [digest for digest, vector in vectors.items() if vector is not None]
    row_of = {digest: row for row, digest in enumerate([*has, *lacking])}
    stored = np.frombuffer(b"".join(found), np.float16).reshape(len(found), -1 if found else 0)
    rows = np.array([row_of[digest] for digest in digests], np.int32)
    return Lookup(stored, [firsts[digest] for digest in lacking], rows, digests)


def new_vectors(digests: np.ndarray, rows: np.ndarray, encoded: np.ndarray, num_stored: int) -> dict[bytes, bytes]:
    """Return the storable ones of the encoded vectors, as bytes by digest.

    digests UINT8 (C, 16), rows INT32 (C,) as in `Lookup`, encoded FP16 (M, E)
    """
    _, firsts = np.unique(rows, return_index=True)
    new = firsts[rows[firsts] >= num_stored]
    vectors = encoded[rows[new] - num_stored]
    return storable([digest.tobytes() for digest in digests[new]], vectors)


def storable(digests: Sequence[bytes], vectors: np.ndarray) -> dict[bytes, bytes]:
    """Return the vectors' bytes by digest, without those that hold NaN or infinity.  M digests, FP16 (M, E)"""
    rows = zip(digests, vectors, are_storable(vectors), strict=True)
    return {digest: vector.tobytes() for digest, vector, is_storable in rows if is_storable}
