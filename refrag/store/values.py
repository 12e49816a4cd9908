"""A chunk vector as it is stored: FP16, behind a checksum of its key and itself.

The vectors of a request are rounded so whether they are stored or not: then an answer cannot depend on the store.
"""

import hashlib

import numpy as np

# C chunks, E encoder width

CHECKSUM_BYTES = 8
LARGEST = float(np.finfo(np.float16).max)


def round_to_stored(vectors: np.ndarray) -> np.ndarray:
    """FP32 (C, E) -> FP16 (C, E), what is too large for it cut to the largest number."""
    return np.clip(vectors, -LARGEST, LARGEST).astype(np.float16)


def are_storable(vectors: np.ndarray) -> np.ndarray:
    """BOOL (C,): which are worth keeping; an encoder that overflowed once may not do so the next time."""
    storable: np.ndarray = np.isfinite(vectors).all(-1)
    return storable


def seal(key: bytes, vector: bytes) -> bytes:
    """The vector's bytes as they go into a tier."""
    return _checksum(key, vector) + vector


def open_sealed(key: bytes, value: bytes) -> bytes | None:
    """The vector's bytes, or None if they are not what was sealed under this key."""
    vector = value[CHECKSUM_BYTES:]
    return vector if vector and value[:CHECKSUM_BYTES] == _checksum(key, vector) else None


def _checksum(key: bytes, vector: bytes) -> bytes:
    return hashlib.blake2b(vector, digest_size=CHECKSUM_BYTES, key=key).digest()
