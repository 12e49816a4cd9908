"""Real chunks for an ONNX model in integers: half of them set its scales, the rest measure its error against torch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from refrag.config import RefragConfig
from refrag.context.chunking import Chunk, Chunker
from refrag.data.passages import read_passages
from refrag.errors import CheckpointError
from refrag.export.quantisation import SCHEME, Batch
from refrag.model.tokenizers import load_decoder_tokenizer, load_encoder_tokenizer

# C chunks, L encoder tokens per chunk

BATCH_CHUNKS = 64
# More chunks hardly change the scales, and take longer.
MAX_CHUNKS = 2048


@dataclass(frozen=True)
class Calibration:
    """Chunks that set the scales, and others to check them with.

    scales: inputs of the encoder, by name. checks: INT64 ids and masks, (C, L) each, whose last row is empty.
    """

    scales: list[Batch]
    checks: list[tuple[Tensor, Tensor]]

    @property
    def digest(self) -> str:
        """Digest of the scheme and of the chunks that set its scales, since others give other vectors."""
        digest = hashlib.blake2b(SCHEME.encode(), digest_size=16)
        for batch in self.scales:
            for array in batch.values():
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def read_calibration(passages: Path, checkpoint: Path, config: RefragConfig) -> Calibration:
    """Cut the file's passages into chunks as the server would, MAX_CHUNKS at most.

    Raises RefragError if the file cannot be read or holds fewer than two chunks.
    """
    chunker = Chunker.of(config, load_decoder_tokenizer(checkpoint), load_encoder_tokenizer(checkpoint))
    chunks = chunker.context_chunks(read_passages(passages))[:MAX_CHUNKS]
    if len(chunks) < 2:
        raise CheckpointError(f"{passages} holds {len(chunks)} chunks; give more passages, with 2 at least")
    # Chunks go to the two halves in turn, so that both cover the whole file.
    scales = [chunker.encoder_inputs(batch) for batch in _batches(chunks[::2])]
    # The ONNX model promises zeros for a row that is all padding.
    checks = [chunker.encoder_inputs([*batch, Chunk((), 0)]) for batch in _batches(chunks[1::2])]
    return Calibration(
        [{"input_ids": ids, "attention_mask": mask} for ids, mask in scales],
        [(torch.from_numpy(ids), torch.from_numpy(mask)) for ids, mask in checks],
    )


def _batches(chunks: Sequence[Chunk]) -> list[Sequence[Chunk]]:
    return [chunks[start : start + BATCH_CHUNKS] for start in range(0, len(chunks), BATCH_CHUNKS)]
