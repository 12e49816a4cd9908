"""Comparison of an ONNX model with the torch module that it was exported from, on seeded inputs or given chunks."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from refrag.context.alignment import FIRST_PLACE
from refrag.errors import CheckpointError
from refrag.export.graphs import CHUNK_ENCODER, PASSAGE_ENCODER, PROJECTOR, Graph
from refrag.export.precision import Precision
from refrag.model.encoder import ChunkEncoder
from refrag.model.projector import Projector

# C chunks, L encoder tokens per chunk, E encoder width, D decoder width

SEED = 0
NUMS_CHUNKS = (1, 2, 9)

# Largest error allowed, as a share of the largest value.
# FP32: the two runtimes only add in another order, about 1e-6 in deep encoders; a wrong operator costs far more.
# FP16: each value is rounded to 11 bits (5e-4), and over some tens of layers the roundings add up to about 1e-2; a lost
# mask or an overflow costs 1e-1 and more.
# INT8: only inside products, weights are rounded to 7 bits (8e-3) and activations to 8 bits (4e-3) of ranges that the
# largest values stretch.
TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2, "int8": 5e-2}


@dataclass(frozen=True)
class Parity:
    """The error of an ONNX model against torch; the relative error is a share of the largest expected value."""

    graph: str
    max_absolute_error: float
    max_relative_error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        # Written so that NaN fails.
        return self.max_relative_error <= self.tolerance

    def __str__(self) -> str:
        return (
            f"{self.graph}: largest error {self.max_absolute_error:.1e}, "
            f"relative {self.max_relative_error:.1e} (allowed {self.tolerance:.0e})"
        )


def check_chunk_encoder(
    path: Path,
    encoder: ChunkEncoder,
    max_length: int,
    precision: Precision,
    batches: Iterable[tuple[Tensor, Tensor]] | None = None,
) -> Parity:
    """Compare on full, padded and empty chunks of up to `max_length` tokens.

    batches: ids and masks (C, L) to compare on instead of seeded ones.
    Raises CheckpointError if the error exceeds the precision's tolerance.
    """
    batches = encoder_batches(encoder, max_length) if batches is None else batches
    return _check(CHUNK_ENCODER, path, _encoder_in_torch(encoder), batches, precision)


def check_passage_encoder(path: Path, encoder: ChunkEncoder, max_length: int, precision: Precision) -> Parity:
    """Compare on full, padded and empty texts of up to `max_length` tokens; raise CheckpointError as above."""
    return _check(PASSAGE_ENCODER, path, _encoder_in_torch(encoder), encoder_batches(encoder, max_length), precision)


def check_projector(
    path: Path, projector: Projector, encoder: ChunkEncoder, max_length: int, precision: Precision
) -> Parity:
    """Compare on vectors that the encoder really produces; raise CheckpointError if the error exceeds the tolerance."""
    encode = _encoder_in_torch(encoder)
    batches = ((encode(*batch),) for batch in encoder_batches(encoder, max_length))
    return _check(PROJECTOR, path, projector, batches, precision)


def encoder_batches(encoder: ChunkEncoder, max_length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield seeded ids and masks (C, L) for several C and L; where C > 1 the last row is all padding."""
    generator = torch.Generator().manual_seed(SEED)
    vocab_size = encoder.backbone.config.vocab_size
    pad_token_id = encoder.backbone.config.pad_token_id or 0
    for length in sorted({max_length, max(1, max_length // 2)}):
        for num_chunks in NUMS_CHUNKS:
            ids = torch.randint(vocab_size, (num_chunks, length), generator=generator)
            num_tokens = torch.randint(1, length + 1, (num_chunks, 1), generator=generator)
            num_tokens[0] = length
            num_tokens[1:][-1:] = 0
            mask = torch.arange(length) < num_tokens  # (C, L)
            yield ids.masked_fill(~mask, pad_token_id), mask * _marks(encoder, length)


def _marks(encoder: ChunkEncoder, length: int) -> Tensor:
    """Return what an attention mask without padding holds: ones or, for ordered pooling, every place.  -> INT64 (L,)"""
    if encoder.ordered is None:
        return torch.ones(length, dtype=torch.long)
    return FIRST_PLACE + torch.arange(length) % encoder.ordered.chunk_size


def _encoder_in_torch(encoder: ChunkEncoder) -> Callable[[Tensor, Tensor], Tensor]:
    def encode(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        is_empty = attention_mask.sum(1, keepdim=True) == 0
        # CLS pooling of nothing is arbitrary in torch; the ONNX model promises zeros.
        return encoder(input_ids, attention_mask).masked_fill(is_empty, 0.0)

    return encode


@torch.no_grad()
def _check(
    graph: Graph,
    path: Path,
    reference: Callable[..., Tensor],
    batches: Iterable[tuple[Tensor, ...]],
    precision: Precision,
) -> Parity:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    max_error = max_value = 0.0
    for batch in batches:
        expected = _run_torch(graph, reference, batch)
        actual = session.run(
            [graph.output], {name: tensor.numpy() for name, tensor in zip(graph.inputs, batch, strict=True)}
        )[0]
        # numpy's maximum, unlike Python's, keeps NaN.
        max_error = float(np.maximum(max_error, np.abs(actual - expected).max()))
        max_value = float(np.maximum(max_value, np.abs(expected).max()))
    parity = Parity(graph.name, max_error, float(np.divide(max_error, max_value)), TOLERANCES[precision])
    if not parity.holds:
        raise CheckpointError(
            f"{parity}; the {precision} ONNX model does not compute what torch does, so it is not deployed"
        )
    return parity


def _run_torch(graph: Graph, reference: Callable[..., Tensor], batch: tuple[Tensor, ...]) -> np.ndarray:
    try:
        return reference(*batch).numpy()
    except (IndexError, RuntimeError) as error:
        shape = tuple(batch[0].shape)
        raise CheckpointError(f"{graph.name} cannot take an input of shape {shape} in torch: {error}") from error
