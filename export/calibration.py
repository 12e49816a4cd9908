"""Real chunks for a graph in integers: half of them set its scales, the other half say how far it is from torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.quantisation import Batch
from refrag.chunking import Chunk, Chunker
from refrag.config import RefragConfig
from refrag.errors import CheckpointError, RefragError
from refrag.model.tokenizers import load_decoder_tokenizer, load_encoder_tokenizer
from refrag_client import RefragError as ClientError
from refrag_client.cli.passages import read_passages

# C chunks, L encoder tokens per chunk

BATCH_CHUNKS = 64
# More change the scales little, and every one of them runs through torch.
MAX_CHUNKS = 2048


@dataclass(frozen=True)
class Calibration:
    """scales: what is calibrated with. checks: INT64 ids and masks (C, L) of other chunks, the last row empty."""

    scales: list[Batch]
    checks: list[tuple[Tensor, Tensor]]


def read_calibration(passages: Path, checkpoint: Path, config: RefragConfig) -> Calibration:
    """Cut the file's passages as the server would; raise RefragError if they are too few or cannot be read."""
    chunker = Chunker(config, load_decoder_tokenizer(checkpoint), load_encoder_tokenizer(checkpoint))
    try:
        chunks = chunker.context_chunks(read_passages(str(passages)))[:MAX_CHUNKS]
    except ClientError as error:
        raise RefragError(str(error)) from None
    if len(chunks) < 2:
        raise CheckpointError(f"{passages} holds {len(chunks)} chunks; calibration needs 2, and better hundreds")
    # In turn, so that both halves hold every passage's beginning and end.
    return Calibration(
        [{"input_ids": ids, "attention_mask": mask} for ids, mask in _batches(chunks[::2], chunker)],
        [(torch.from_numpy(ids), torch.from_numpy(mask)) for ids, mask in _batches(chunks[1::2], chunker)],
    )


def _batches(chunks: Sequence[Chunk], chunker: Chunker) -> list[tuple[np.ndarray, np.ndarray]]:
    starts = range(0, len(chunks), BATCH_CHUNKS)
    # A row of padding in each: the graph promises zeros for it.
    padding = Chunk((), 0)
    return [chunker.encoder_inputs([*chunks[start : start + BATCH_CHUNKS], padding]) for start in starts]
