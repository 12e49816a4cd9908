"""Serves the store to operators, beside the ensemble. Operations on a whole tier go through it in pages, by cursor.

index    passages              encode what the store lacks, and return when it is committed
cut      passages              tell where their chunks begin and end
encode   passages              the same, with the chunks' vectors; nothing is stored
stats                          what each tier holds
verify   tier, cursor          delete damaged values
prune    tier, cursor, keep    delete vectors of encoders that are in use nowhere
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refrag.citations import locate
from refrag.config import RefragConfig
from refrag.context.chunking import PackedChunks, ReadPassages
from refrag.errors import InvalidRequest, Overloaded
from refrag.serving.parameters import check_least
from refrag.serving.passages import open_chunker
from refrag.serving.store_metrics import StoreMetrics
from refrag.serving.tensors import Tensors, check_bytes, strings, text, texts
from refrag.serving.triton import close_metrics, infer
from refrag.store.keys import FINGERPRINT_BYTES, EncoderIdentity
from refrag.store.lookup import Lookup, look_up, values_by_digest
from refrag.store.settings import StoreSettings, open_store
from refrag.store.store import GuardedTier
from refrag.store.tiers.tier import TierError
from refrag.store.values import round_to_stored

# C chunks, M different ones that the store lacks, L encoder tokens per chunk, E encoder width

PAGE = 4096
NO_SPANS, NO_VECTORS = np.zeros((0, 3), np.int32), np.zeros((0, 0), np.float16)


@dataclass(frozen=True)
class ChunkStoreSettings(StoreSettings):
    """Settings of the store, and

    encoder_batch: chunks per request to the encoder, between which others have their turn.
    max_text_bytes: limit for the passages of one request, checked before anything is tokenised.

    Raises SetupError for a number below 1.
    """

    encoder_batch: int = 256
    max_text_bytes: int = 4 * 1024 * 1024

    def __post_init__(self) -> None:
        check_least(self, 1, "encoder_batch", "max_text_bytes")


class ChunkStore:
    """The service behind the model `chunk_store`, whose config.pbtxt lists the tensors."""

    def __init__(self, checkpoint: Path, settings: ChunkStoreSettings) -> None:
        self.settings = settings
        self.config = RefragConfig.load(checkpoint)
        self.encoder = EncoderIdentity.load(checkpoint)
        self.store = open_store(settings, self.encoder, has_memory=False)
        self.chunker, self.tokens = open_chunker(checkpoint, self.config, self.store)
        self.metrics = StoreMetrics(self.store, "chunk_store")
        self.operations: dict[str, Callable[[Tensors], Tensors]] = {
            "index": self._index,
            "cut": self._cut,
            "encode": self._encode_passages,
            "stats": self._stats,
            "verify": self._verify,
            "prune": self._prune,
        }

    def run(self, inputs: Tensors) -> Tensors:
        name = text(inputs, "operation") or ""
        if name not in self.operations:
            raise InvalidRequest(f"operation is {name!r}; allowed: {', '.join(self.operations)}")
        try:
            return self.operations[name](inputs)
        except TierError as error:
            raise Overloaded(f"the store cannot be reached: {error}; try again later") from None

    def close(self) -> None:
        self.metrics.close()
        self.store.close()
        close_metrics()

    def _index(self, inputs: Tensors) -> Tensors:
        if not self.store.tiers:
            raise InvalidRequest(
                "the store has no tier that outlives the server; set store_disk_path or store_redis_url"
            )
        read = self._read(inputs)
        chunks, lookup = read.chunks, look_up(self.store, read.chunks.token_ids)
        encoded = self._encode(chunks[lookup.lacking])
        # Another tier may lack what one tier had, so all vectors go to all tiers.
        vectors = _in_order(lookup, encoded)
        are_written = self.store.put(values_by_digest(lookup.digests, vectors)), self.tokens.put(read.new_tokens)
        if not all(are_written):
            raise Overloaded("not every tier of the store could be written to; the server's log tells why; try again")
        return _answer(
            {
                "fingerprint": self.store.fingerprint.hex(),
                "num_chunks": len(chunks),
                "num_tokens": chunks.num_tokens,
                "num_encoded": len(lookup.lacking),
                "num_bytes": sum(part.nbytes for part in encoded),
            }
        )

    def _cut(self, inputs: Tensors) -> Tensors:
        read = self._read(inputs)
        return _answer(_counts(read.chunks), chunk_spans=_places(read))

    def _encode_passages(self, inputs: Tensors) -> Tensors:
        read = self._read(inputs)
        lookup = look_up(self.store, read.chunks.token_ids)
        vectors = _in_order(lookup, self._encode(read.chunks[lookup.lacking]))
        return _answer(_counts(read.chunks), chunk_spans=_places(read), chunk_vectors=vectors)

    def _read(self, inputs: Tensors) -> ReadPassages:
        check_bytes(inputs, ["passages"], self.settings.max_text_bytes)
        return self.chunker.read_passages(texts(inputs, "passages"))

    def _encode(self, chunks: PackedChunks) -> list[np.ndarray]:
        """Return the chunks' vectors, FP16 (M, E), in several parts, from the ensemble's own encoder."""
        parts = []
        for start in range(0, len(chunks), self.settings.encoder_batch):
            ids, mask = self.chunker.encoder_inputs(chunks[start : start + self.settings.encoder_batch])
            [vectors] = infer("chunk_encoder", {"input_ids": ids, "attention_mask": mask}, ["chunk_vectors"])
            parts.append(round_to_stored(vectors))
        return parts

    def _stats(self, inputs: Tensors) -> Tensors:
        return _answer(
            {
                "fingerprint": self.store.fingerprint.hex(),
                "chunk_size": self.config.chunk_size,
                "tiers": [_describe(guarded) for guarded in self.store.tiers],
            }
        )

    def _verify(self, inputs: Tensors) -> Tensors:
        tier, cursor = self._place(inputs)
        num_checked, num_deleted, following = self.store.verify(tier, cursor, PAGE)
        return _answer({"num_checked": num_checked, "num_deleted": num_deleted}, following)

    def _prune(self, inputs: Tensors) -> Tensors:
        tier, cursor = self._place(inputs)
        kept = [_fingerprint(value) for value in texts(inputs, "keep")]
        num_checked, num_deleted, following = self.store.prune(tier, kept, cursor, PAGE)
        return _answer({"num_checked": num_checked, "num_deleted": num_deleted}, following)

    def _place(self, inputs: Tensors) -> tuple[GuardedTier, bytes]:
        """Return the tier that is asked for, and the cursor to go on with."""
        name, tiers = text(inputs, "tier"), {guarded.tier.name: guarded for guarded in self.store.tiers}
        if name not in tiers:
            raise InvalidRequest(f"tier is {name!r}; this server has {', '.join(tiers) or 'no tier that outlives it'}")
        return tiers[name], inputs["cursor"].tobytes() if "cursor" in inputs else b""


def _describe(guarded: GuardedTier) -> dict[str, Any]:
    try:
        return {"name": guarded.tier.name, **asdict(guarded.insist(guarded.tier.usage)), "error": None}
    except TierError as error:
        return {"name": guarded.tier.name, "num_entries": None, "num_bytes": None, "error": str(error)}


def _fingerprint(value: str) -> bytes:
    try:
        fingerprint = bytes.fromhex(value)
    except ValueError:
        fingerprint = b""
    if len(fingerprint) != FINGERPRINT_BYTES:
        raise InvalidRequest(f"fingerprint is {value!r}; it must be {2 * FINGERPRINT_BYTES} hexadecimal digits")
    return fingerprint


def _in_order(lookup: Lookup, encoded: Sequence[np.ndarray]) -> np.ndarray:
    """Return the vectors of all chunks, those that the store had and the others, FP16 (C, E)."""
    parts = [part for part in (lookup.stored, *encoded) if len(part)]
    return np.concatenate(parts)[lookup.rows] if parts else NO_VECTORS


def _places(read: ReadPassages) -> np.ndarray:
    """Return each chunk's passage, its first character and the one behind its last, INT32 (C, 3)."""
    return locate(read.chunks.passages, read.spans)


def _counts(chunks: PackedChunks) -> dict[str, Any]:
    return {"num_chunks": len(chunks), "num_tokens": chunks.num_tokens}


def _answer(
    result: dict[str, Any],
    cursor: bytes = b"",
    chunk_spans: np.ndarray = NO_SPANS,
    chunk_vectors: np.ndarray = NO_VECTORS,
) -> Tensors:
    return {
        "result": strings(json.dumps(result)),
        "next_cursor": np.frombuffer(cursor, np.uint8),
        "chunk_spans": chunk_spans,
        "chunk_vectors": chunk_vectors,
    }
