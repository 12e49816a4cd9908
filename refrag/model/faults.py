"""Says why a Hugging Face model cannot be a REFRAG decoder, by the property that it lacks.

A decoder is read slot by slot at positions that it is told, from embeddings alone, and its parts are called one by one:
token embeddings, base model, output matrix. What is no such model can often be opened as one all the same.
"""

import inspect
from typing import Any

import torch
from torch import Tensor

from refrag.model.decoder import Decoder
from refrag.model.positions import short_table_fault

# S slots, D decoder width, V vocabulary size

NUM_TRIED_SLOTS = 8
# Share of the largest value by which two orders of the same sums may differ in a decoder of few layers.
TOLERANCES = {torch.bfloat16: 0.05, torch.float16: 0.02}
DEFAULT_TOLERANCE = 1e-3
FEW_LAYERS = 8


def difference(values: Tensor, expected: Tensor) -> float:
    """Return the largest difference, as a share of the largest expected value."""
    return float((values - expected).abs().max() / expected.abs().max())


def tolerance(decoder: Decoder) -> float:
    """Return the share of the largest logit by which two orders of the same sums may differ.

    In half precision it grows with the root of the number of layers, as the sum of their independent rounding errors
    does: 32 layers of random weights were seen to differ by 5.3% in bfloat16 on an H100.
    """
    few = TOLERANCES.get(decoder.token_embeddings.weight.dtype)
    if few is None:
        return DEFAULT_TOLERANCE
    return few * max(1.0, decoder.config.num_hidden_layers / FEW_LAYERS) ** 0.5


def known_fault(decoder: Decoder, max_prompt_slots: int) -> str | None:
    """Return what is wrong with the decoder by its class and its config, before it is ever called, or None."""
    backbone, config = decoder.backbone, decoder.config
    if getattr(backbone.config, "is_encoder_decoder", False):
        return "it is an encoder-decoder (is_encoder_decoder), whose decoder reads what its encoder read before"
    if "inputs_embeds" not in inspect.signature(backbone.forward).parameters:
        return "its forward has no inputs_embeds, by which chunk embeddings could enter"
    if width := getattr(config, "hidden_size_per_layer_input", None):
        return (
            f"each of its layers has an input of its own, looked up by token id (hidden_size_per_layer_input is {width}"
            "), and a chunk embedding has no id"
        )
    return short_table_fault(config, max_prompt_slots)


@torch.inference_mode()
def ids_fault(decoder: Decoder) -> str | None:
    """Return what is wrong if the decoder adds something to tokens that chunk embeddings would lack, or None."""
    ids, embeddings = _tokens(decoder)
    if _agree(decoder, _own_logits(decoder, input_ids=ids), _own_logits(decoder, inputs_embeds=embeddings)):
        return None
    return (
        "it reads token ids otherwise than their rows of its token embeddings (get_input_embeddings), so that chunk "
        "embeddings would lack what it adds to tokens"
    )


@torch.inference_mode()
def tried_fault(decoder: Decoder) -> str | None:
    """Return what shows to be wrong with the decoder when it reads a few tokens, or None."""
    _, embeddings = _tokens(decoder)
    try:
        own = _own_logits(decoder, inputs_embeds=embeddings)  # (S, V)
    except Exception as error:
        return f"it cannot read embeddings without more input than these (inputs_embeds): {error}"
    return (
        _causal_fault(decoder, embeddings, own)
        or ids_fault(decoder)
        or _head_fault(decoder, embeddings, own)
        or _position_fault(decoder, embeddings)
    )


@torch.inference_mode()
def packing_fault(decoder: Decoder) -> str | None:
    """Return what is wrong if a prompt sees the one before it in the same row, or None."""
    _, embeddings = _tokens(decoder)
    first, second = embeddings.chunk(2)
    positions = [torch.arange(len(prompt), device=embeddings.device) for prompt in (first, second)]
    packed = decoder.read(embeddings[None], torch.cat(positions)[None])[0, len(first) :]
    if _agree(decoder, packed, decoder.read(second[None], positions[1][None])[0]):
        return None
    return "positions that begin anew (position_ids) do not keep its prompts in one row apart"


def _causal_fault(decoder: Decoder, embeddings: Tensor, own: Tensor) -> str | None:
    half = len(embeddings) // 2
    if _agree(decoder, _own_logits(decoder, inputs_embeds=embeddings[:half]), own[:half]):
        return None
    flag = getattr(decoder.config, "is_decoder", None)
    cause = "; is_decoder in its config is false, as in an encoder" if flag is False else ""
    return f"it is not causal: a slot's logits change with the slots after it{cause}"


def _head_fault(decoder: Decoder, embeddings: Tensor, own: Tensor) -> str | None:
    ours = decoder.logits(decoder.read(embeddings.unsqueeze(0)))[0]
    if _agree(decoder, ours, own):
        return None
    fault = "its logits are not its last hidden states times its output matrix (get_output_embeddings)"
    known = {decoder.backbone.base_model, decoder.backbone.get_output_embeddings()}
    if others := [name for name, module in decoder.backbone.named_children() if module not in known]:
        return f"{fault}: {', '.join(others)} also belongs to its head"
    names = [name for name in decoder.config.to_dict() if "logit" in name or name.endswith("_multiplier")]
    return f"{fault}; settings of its config that may be part of them: {', '.join(names) or 'none by name'}"


def _position_fault(decoder: Decoder, embeddings: Tensor) -> str | None:
    slots, positions = embeddings.unsqueeze(0), torch.arange(len(embeddings), device=embeddings.device)[None]
    told = decoder.read(slots, positions)
    if not _agree(decoder, told, decoder.read(slots)):
        return "its positions do not begin with 0 (position_ids), which every prompt's do here"
    if _agree(decoder, decoder.read(slots, 2 * positions), told):
        return "it counts positions by itself and does not read position_ids, so that no prompt can be read in parts"
    return None


def _tokens(decoder: Decoder) -> tuple[Tensor, Tensor]:
    """Return a few token ids and their embeddings.  -> (S,), (S, D)"""
    device = decoder.token_embeddings.weight.device
    ids = torch.arange(1, NUM_TRIED_SLOTS + 1, device=device) * 7919 % decoder.vocab_size
    return ids, decoder.token_embeddings(ids)


def _own_logits(decoder: Decoder, **inputs: Any) -> Tensor:
    """Return the logits after each slot by the model's own forward.  (S, D) or (S,) -> (S, V)"""
    batch = {name: value.unsqueeze(0) for name, value in inputs.items()}
    logits: Tensor = decoder.backbone(**batch, use_cache=False).logits[0]
    return logits


def _agree(decoder: Decoder, values: Tensor, expected: Tensor) -> bool:
    return difference(values, expected) <= tolerance(decoder)
