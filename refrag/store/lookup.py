"""A request's chunks against the store: what it has, what is to be encoded, and how both come together again.

chunks of the request    A B C B D          the store has A and C
stored vectors           A C                rows of both together:  A 0   B 2   C 1   B 2   D 3
vectors that are encoded B D
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
    """What the store has of a request's chunks.

    stored: FP16 (H, E). lacking: numbers of the first chunks of their kind that are to be encoded, M of them.
    rows: INT32 (C,), each chunk's row among the stored vectors and, after them, those that are to be encoded.
    digests: of each chunk, C of them.
    """

    stored: np.ndarray
    lacking: list[int]
    rows: np.ndarray
    digests: list[bytes]


# Of a request that needs no vectors: none is stored, none lacking.
NOTHING_NEEDED = Lookup(np.zeros((0, 0), np.float16), [], np.zeros(0, np.int32), [])


def look_up(store: Store, packed: np.ndarray) -> Lookup:
    """All chunks of a request at once; what comes twice is looked up, and encoded, once."""
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
    """What was encoded, by digest.  UINT8 (C, 16), INT32 (C,), FP16 (M, E)"""
    _, firsts = np.unique(rows, return_index=True)
    new = firsts[rows[firsts] >= num_stored]
    vectors = encoded[rows[new] - num_stored]
    return storable([digest.tobytes() for digest in digests[new]], vectors)


def storable(digests: Sequence[bytes], vectors: np.ndarray) -> dict[bytes, bytes]:
    """The vectors' bytes by digest, but for those that are not worth keeping.  M digests, FP16 (M, E)"""
    rows = zip(digests, vectors, are_storable(vectors), strict=True)
    return {digest: vector.tobytes() for digest, vector, is_storable in rows if is_storable}
