"""A value as it is stored: a checksum over key and value, then the value. A chunk vector is stored in FP16.

All vectors of a request are rounded to FP16, stored or not, so that no answer depends on what the store holds.
"""

import hashlib

import numpy as np

# C chunks, E encoder width

CHECKSUM_BYTES = 8
LARGEST = float(np.finfo(np.float16).max)


def round_to_stored(vectors: np.ndarray) -> np.ndarray:
    """Round vectors to FP16; what is beyond its range becomes its largest number.  FP32 (C, E) -> FP16 (C, E)"""
    return np.clip(vectors, -LARGEST, LARGEST).astype(np.float16)


def seal(key: bytes, vector: bytes) -> bytes:
    """Return the bytes that go into a tier."""
    return _checksum(key, vector) + vector


def open_sealed(key: bytes, value: bytes) -> bytes | None:
    """Return the vector's bytes, or None if they are not what was sealed under this key."""
    vector = value[CHECKSUM_BYTES:]
    return vector if vector and value[:CHECKSUM_BYTES] == _checksum(key, vector) else None


def _checksum(key: bytes, vector: bytes) -> bytes:
    return hashlib.blake2b(vector, digest_size=CHECKSUM_BYTES, key=key).digest()
