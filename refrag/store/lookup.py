"""Splits a request's chunks into those that the store has and those to encode, and joins their vectors again.

chunks of the request    A B C B D          the store has A and C
stored vectors           A C                row of each chunk, stored vectors first:  A 0   B 2   C 1   B 2   D 3
encoded vectors          B D
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from refrag.store.keys import digest_chunks
from refrag.store.store import Store

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


def new_rows(rows: np.ndarray, num_stored: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which encoded vectors the chunks need, by number, and for each of them the first chunk that needs it.

    rows: INT32 (C,) as in `Lookup`, of which the first `num_stored` are of stored vectors.
    """
    _, firsts = np.unique(rows, return_index=True)
    chunks = firsts[rows[firsts] >= num_stored]
    return rows[chunks] - num_stored, chunks


def values_by_digest(digests: Iterable[bytes], vectors: np.ndarray) -> dict[bytes, bytes]:
    """Return the vectors' bytes as the store takes them.  M digests, FP16 (M, E)"""
    return {digest: vector.tobytes() for digest, vector in zip(digests, vectors, strict=True)}
