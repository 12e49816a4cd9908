"""Chunk vectors as `expansion_policy` gets them, stored and encoded ones, checked against the request and each other.

What comes through the ensemble holds by itself; a client may also call the model directly, with anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refrag.errors import InvalidRequest, RefragError
from refrag.serving.tensors import Tensors, check_range
from refrag.store.forms import are_finite
from refrag.store.keys import DIGEST_BYTES
from refrag.store.lookup import new_rows, values_by_digest
from refrag.store.signing import CHUNK, MODEL_OUTPUT, TAG_LENGTH, are_signed
from refrag.store.values import round_to_stored

# C context chunks, Q question chunks, L encoder tokens per chunk, E encoder width
# H different chunks of the context that the store had, M that were encoded, N of them that a chunk names

NEEDED = ("chunk_digests", "encoder_ids", "encoder_mask", "chunk_tags", "vector_tags")
# An export never overwrites a config.pbtxt.
OLD_CONFIG = (
    "the tensor {} is missing, since the repository's config.pbtxt files come from an older release; delete those of "
    "preprocessing, chunk_encoder, expansion_policy and refrag, run the export again, and restart the server"
)


@dataclass(frozen=True)
class ChunkVectors:
    """The vectors of one request. Its arrays lie in memory that is gone once the request is answered.

    encoder_ids, encoder_mask: INT64 (M + Q, L), what the encoder read. encoded: FP32 (M + Q, E), what it made of it.
    chunk_tags (M, 4), vector_tags (M + Q, 4): the proofs of `refrag.store.signing`.
    stored: FP16 (H, E). rows (C,), digests (C, 16): as in `refrag.store.lookup.Lookup`.
    """

    encoder_ids: np.ndarray
    encoder_mask: np.ndarray
    encoded: np.ndarray
    chunk_tags: np.ndarray
    vector_tags: np.ndarray
    stored: np.ndarray
    rows: np.ndarray
    digests: np.ndarray

    @property
    def num_new(self) -> int:
        return len(self.chunk_tags)

    def table(self) -> np.ndarray:
        """Return all vectors as answers use them, rounded as the store does.  FP16 (H + M + Q, E)"""
        encoded = round_to_stored(self.encoded)
        return np.concatenate([self.stored.reshape(len(self.stored), encoded.shape[1]), encoded])

    def take_new(self) -> "NewVectors":
        """Return copies of the vectors that the store lacked, with their proofs."""
        numbers, chunks = new_rows(self.rows, len(self.stored))  # (N,), (N,)
        arrays = (self.encoder_ids, self.encoder_mask, self.encoded, self.chunk_tags, self.vector_tags)
        return NewVectors(self.digests[chunks], *(array[numbers] for array in arrays))


@dataclass(frozen=True)
class NewVectors:
    """Vectors that the store lacked, N of them, with what they were made of; arrays as in ChunkVectors."""

    digests: np.ndarray
    encoder_ids: np.ndarray
    encoder_mask: np.ndarray
    encoded: np.ndarray
    chunk_tags: np.ndarray
    vector_tags: np.ndarray

    def are_signed(self, key: bytes | None) -> np.ndarray:
        """Return which vectors this server's encoder made, of the chunks whose digests they have.  BOOL (N,)"""
        read = (self.encoder_ids, self.encoder_mask)
        are_named = are_signed(key, CHUNK, (self.digests, *read), self.chunk_tags)
        are_encoded = are_signed(key, MODEL_OUTPUT, (*read, self.encoded), self.vector_tags)
        return are_named & are_encoded

    def values(self, are_kept: np.ndarray) -> dict[bytes, bytes]:
        """Return those to keep in the form in which the store takes them, by digest.  are_kept: BOOL (N,)"""
        digests = [digest.tobytes() for digest in self.digests[are_kept]]
        return values_by_digest(digests, round_to_stored(self.encoded[are_kept]))


def read_vectors(inputs: Tensors, width: int, num_needed: int) -> ChunkVectors:
    """Return the request's vectors, or raise InvalidRequest that names the tensor which contradicts the others.

    width: of this encoder's vectors. num_needed: how many chunks need one, all or none.
    """
    for name in NEEDED:
        if name not in inputs:
            raise RefragError(OLD_CONFIG.format(name))
    vectors = ChunkVectors(
        encoder_ids=inputs["encoder_ids"],
        encoder_mask=inputs["encoder_mask"],
        encoded=inputs["chunk_vectors"],
        chunk_tags=inputs["chunk_tags"],
        vector_tags=inputs["vector_tags"],
        stored=inputs["stored_vectors"],
        rows=inputs["vector_rows"],
        digests=inputs["chunk_digests"],
    )
    _check_shapes(vectors, width, num_needed)
    reason = "rows of stored_vectors, then of chunk_tags"
    check_range("vector_rows", vectors.rows, len(vectors.stored) + vectors.num_new, reason)
    if num_needed:
        _check_finite("chunk_vectors", np.isfinite(vectors.encoded).all())
        _check_finite("stored_vectors", are_finite(vectors.stored).all())
    return vectors


def _check_shapes(vectors: ChunkVectors, width: int, num_needed: int) -> None:
    num_encoded, num_stored = len(vectors.encoded), len(vectors.stored)
    length = vectors.encoder_ids.shape[1]
    _check_shape("chunk_vectors", vectors.encoded, [num_encoded, width], "this encoder's width")
    if num_stored:
        _check_shape("stored_vectors", vectors.stored, [num_stored, width], "this encoder's width")
    _check_shape("encoder_ids", vectors.encoder_ids, [num_encoded, length], "as many rows as chunk_vectors")
    _check_shape("encoder_mask", vectors.encoder_mask, [num_encoded, length], "the shape of encoder_ids")
    _check_shape("vector_tags", vectors.vector_tags, [num_encoded, TAG_LENGTH], "as many rows as chunk_vectors")
    _check_shape("vector_rows", vectors.rows, [num_needed], "one for each chunk, none if all are expanded")
    _check_shape("chunk_digests", vectors.digests, [num_needed, DIGEST_BYTES], "a row for each of vector_rows")
    if vectors.num_new > num_encoded:
        raise InvalidRequest(f"chunk_tags has {vectors.num_new} rows; chunk_vectors has no more than {num_encoded}")


def _check_shape(name: str, tensor: np.ndarray, shape: Sequence[int], reason: str) -> None:
    if list(tensor.shape) != list(shape):
        raise InvalidRequest(f"{name} has shape {list(tensor.shape)}; it must have {list(shape)}: {reason}")


def _check_finite(name: str, is_finite: np.bool_) -> None:
    if not is_finite:
        raise InvalidRequest(f"{name} holds NaN or infinity; every value must be finite")
