"""Says why a Hugging Face model cannot be a chunk encoder, by the property that it lacks.

Chunks of any length are encoded in one batch, padded to the longest, and their vectors are kept: a vector must not
depend on what else was in its batch, and must depend on all of its chunk. Most models that can be opened do both.
"""

from typing import Any

import torch
from torch import Tensor

from refrag.context.alignment import FIRST_PLACE
from refrag.model.encoder import ChunkEncoder
from refrag.model.faults import DEFAULT_TOLERANCE, difference

# L encoder tokens of a chunk, V width of the chunk vectors


@torch.inference_mode()
def encoder_fault(encoder: ChunkEncoder, length: int) -> str | None:
    """Return what is wrong with an encoder of chunks of up to `length` tokens, or None."""
    config: Any = encoder.backbone.config
    if getattr(config, "is_encoder_decoder", False):
        return (
            "it is an encoder-decoder (is_encoder_decoder), whose last states are its decoder's; name a model that is "
            "an encoder alone"
        )
    chunk = _some_tokens(encoder, length)
    try:
        vector = encoder(chunk, _whole(chunk))  # (1, V)
    except Exception as error:
        return _unreadable(encoder, chunk, error)
    if vector.shape[1] != encoder.width:
        return f"its states have width {vector.shape[1]}, but its config's hidden_size is {encoder.width}"
    return _padding_fault(encoder, chunk) or _blindness(encoder, chunk, vector)


def _unreadable(encoder: ChunkEncoder, chunk: Tensor, error: Exception) -> str:
    try:
        encoder(chunk[:, :1], _whole(chunk[:, :1]))
    except Exception:
        return f"it cannot read tokens without more input than input_ids and attention_mask: {error}"
    length, limit = chunk.shape[1], getattr(encoder.backbone.config, "max_position_embeddings", None)
    return (
        f"it cannot read encoder_length = {length} tokens: {error}; its max_position_embeddings is {limit}, "
        "of which families like RoBERTa leave out pad_token_id + 1; lower encoder_length, and with it the chunk sizes, "
        "or name another encoder"
    )


def _padding_fault(encoder: ChunkEncoder, chunk: Tensor) -> str | None:
    """Encode half of the chunk, alone and padded to the length of the whole."""
    short = chunk[:, : (chunk.shape[1] + 1) // 2]
    padded, mask = torch.full_like(chunk, _padding(encoder)), torch.zeros_like(chunk)
    padded[:, : short.shape[1]], mask[:, : short.shape[1]] = short, FIRST_PLACE
    differs = difference(encoder(padded, mask), encoder(short, _whole(short)))
    if differs <= DEFAULT_TOLERANCE:
        return None
    return (
        f"a chunk's vector changes with the padding behind it, by {differs:.1%} of its largest value, the limit is "
        f"{DEFAULT_TOLERANCE:.1%}: attention_mask does not hide padding from its layers, so that vectors would depend "
        "on the batch; name another encoder"
    )


def _blindness(encoder: ChunkEncoder, chunk: Tensor, vector: Tensor) -> str | None:
    if chunk.shape[1] == 1:
        return None
    other = chunk.clone()
    other[:, -1] = chunk[:, 0]
    if torch.equal(other, chunk) or not torch.equal(encoder(other, _whole(other)), vector):
        return None
    return (
        f"a chunk's vector does not change with its last token: with pooling {encoder.pooling!r} it is the state of a "
        "token that does not see the tokens after it; choose pooling 'mean', or an encoder that is not causal"
    )


def _whole(chunk: Tensor) -> Tensor:
    """Return the mask of a chunk without padding; for ordered pooling, all of its tokens begin in the first place."""
    return torch.full_like(chunk, FIRST_PLACE)


def _some_tokens(encoder: ChunkEncoder, length: int) -> Tensor:
    """Return a chunk of tokens that are not padding, which RoBERTa does not count as a position.  -> (1, L)"""
    vocab_size, padding = getattr(encoder.backbone.config, "vocab_size", length + 1), _padding(encoder)
    numbers = torch.arange(length, device=next(encoder.parameters()).device) % max(1, vocab_size - 1)
    return ((padding + 1 + numbers) % vocab_size).unsqueeze(0)


def _padding(encoder: ChunkEncoder) -> int:
    return int(getattr(encoder.backbone.config, "pad_token_id", None) or 0)
