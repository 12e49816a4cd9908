"""Records what a decoder's layers ask of transformers' attention interface, in a forward pass of a single row."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from refrag.engine.kv_cache import LayerShape
from refrag.model.decoder import Decoder

# H query heads, W width of a head, V width of a value

RECORDING_ATTENTION = "refrag_recording"
# Tensors that are handed on to every attention function, and change nothing where there is one row.
HARMLESS = {"attention_mask", "position_ids"}


@dataclass
class Recorder:
    """A record of what each layer would keep of a row, how far back it would look, and how often it was computed.

    inputs: names of tensors besides query, key and value that attention is to be computed with.
    """

    shapes: dict[int, LayerShape] = field(default_factory=dict)
    windows: dict[int, int | None] = field(default_factory=dict)
    calls: Counter[int] = field(default_factory=Counter)
    inputs: set[str] = field(default_factory=set)


_recorder: ContextVar[Recorder] = ContextVar("recorder")


@torch.inference_mode()
def record(decoder: Decoder, recorder: Recorder, position: int) -> None:
    """Read one row at this position, and record what comes to the attention."""
    row = decoder.embed_prompt(*_one_chunk(decoder))
    with _recording(recorder):
        decoder.read_with(RECORDING_ATTENTION, row, torch.tensor([position], device=row.device))


def _one_chunk(decoder: Decoder) -> tuple[Tensor, Tensor]:
    weight = decoder.token_embeddings.weight
    return torch.tensor([decoder.vocab_size], device=weight.device), weight[:2].mean(0, keepdim=True)


@contextmanager
def _recording(recorder: Recorder) -> Iterator[None]:
    token = _recorder.set(recorder)
    try:
        yield
    finally:
        _recorder.reset(token)


def _recording_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **options: Any
) -> tuple[Tensor, None]:
    """Return an output of the right shape.  (1, H, 1, W), (1, K, 1, W), (1, K, 1, V) -> (1, 1, H, V)"""
    recorder = _recorder.get()
    layer: int = module.layer_idx  # type: ignore[assignment]
    recorder.shapes[layer] = LayerShape(key.shape[1], key.shape[3], value.shape[3])
    recorder.windows[layer] = options.get("sliding_window")
    recorder.calls[layer] += 1
    recorder.inputs |= {name for name, given in options.items() if torch.is_tensor(given)} - HARMLESS
    return value.repeat_interleave(query.shape[1] // value.shape[1], 1).transpose(1, 2), None


AttentionInterface.register(RECORDING_ATTENTION, _recording_attention)
