"""Checks that the engine can run a decoder, and learns what each of its layers keeps in the KV cache.

Any decoder will do whose positions see each other through transformers' attention interface and in no other way. There
is no list of architectures. Configs that are known not to work are refused with the reason. For the rest a short prompt
is read twice, at once by the model's own attention and in parts by the engine's, and the logits must agree.
"""

import logging
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from transformers import PreTrainedConfig

from refrag.decoders.base import MixedPrompt
from refrag.engine.attention import PAGED_ATTENTION, ShapeRecorder
from refrag.engine.block_pool import slot_runs
from refrag.engine.kv_cache import KVCache, LayerShape
from refrag.engine.runner import Runner, Segment
from refrag.errors import CheckpointError
from refrag.model.decoder import Decoder

log = logging.getLogger(__name__)

LAYER_TYPES = {"full_attention", "sliding_attention"}
# These scale positions by the longest prompt so far, even if another request sent it.
LENGTH_DEPENDENT_ROPES = {"dynamic", "longrope"}
PROBE_PARTS, PROBE_BLOCK_SIZE = (0, 9, 15, 16), 4
# Share of the largest logit by which two orders of the same sums may differ.
TOLERANCES = {torch.bfloat16: 0.05, torch.float16: 0.02}
DEFAULT_TOLERANCE = 1e-3


@torch.inference_mode()
def layer_shapes(decoder: Decoder, max_prompt_slots: int) -> list[LayerShape]:
    """Return what each layer keeps in the KV cache, or raise CheckpointError if the engine cannot run the decoder."""
    config = decoder.backbone.config
    if reason := _known_obstacle(config, max_prompt_slots):
        raise CheckpointError(f"decoder of type {config.model_type!r} is not supported: {reason}")
    recorder, row = ShapeRecorder(), decoder.token_embeddings.weight[:1]
    try:
        decoder.read_with(PAGED_ATTENTION, row, torch.zeros(1, dtype=torch.long, device=row.device), step=recorder)
    except Exception as error:
        raise CheckpointError(
            f"decoder of type {config.model_type!r} is not supported: reading one token with the engine's attention "
            f"failed: {error}"
        ) from error
    layers = range(config.num_hidden_layers)
    if missing := [layer for layer in layers if layer not in recorder.shapes]:
        raise CheckpointError(
            f"decoder of type {config.model_type!r} is not supported: layers {missing} do not compute attention "
            "through transformers' interface, so that the engine cannot keep their state"
        )
    if blind := [layer for layer in layers if recorder.windows[layer] != _window(config, layer)]:
        raise CheckpointError(
            f"decoder of type {config.model_type!r} is not supported: layers {blind} are to see "
            f"{_window(config, blind[0]) or 'all'} positions, but ask the attention for "
            f"{recorder.windows[blind[0]] or 'all'}"
        )
    shapes = [recorder.shapes[layer] for layer in layers]
    probe(Runner(decoder, _probe_cache(decoder, shapes)), PROBE_BLOCK_SIZE)
    return shapes


def separable_last_layer(decoder: Decoder, shapes: Sequence[LayerShape]) -> nn.Module | None:
    """Return the decoder's last layer if it can be computed for only some of a step's rows, else None.

    With None, prefill computes the last layer for all slots and is slower.
    """
    layer = decoder.last_layer
    if layer is None:
        return None
    try:
        probe(Runner(decoder, _probe_cache(decoder, shapes), last_layer=layer), PROBE_BLOCK_SIZE)
    except Exception as error:
        log.warning("the last layer is computed for all slots of a prompt, which makes prefill slower: %s", error)
        return None
    return layer


def _probe_cache(decoder: Decoder, shapes: Sequence[LayerShape]) -> KVCache:
    weight = decoder.token_embeddings.weight
    return KVCache(shapes, PROBE_PARTS[-1], weight.dtype, weight.device)


def _known_obstacle(config: PreTrainedConfig, max_prompt_slots: int) -> str | None:
    if others := sorted(set(getattr(config, "layer_types", None) or []) - LAYER_TYPES):
        return f"it has layers of type {', '.join(others)}; the engine supports only {', '.join(sorted(LAYER_TYPES))}"
    for rope in _ropes(config):
        trained = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        if rope.get("rope_type") in LENGTH_DEPENDENT_ROPES and max_prompt_slots > trained:
            return (
                f"its RoPE scaling {rope['rope_type']!r} makes every position depend on the length of the prompt, so "
                f"that no part of a prompt can be kept; lower max_prompt_slots in refrag.json from {max_prompt_slots} "
                f"to {trained}, up to which nothing is scaled"
            )
    return None


def _window(config: PreTrainedConfig, layer: int) -> int | None:
    """Return how many positions the config lets the layer see; None for all."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    layer_types = getattr(config, "layer_types", None)
    return window if layer_types is None or layer_types[layer] == "sliding_attention" else None


def _ropes(config: PreTrainedConfig) -> list[dict]:
    """Return the RoPE parameters: one dict for the whole model or, as in Gemma 3, one for each type of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [value for value in parameters.values() if isinstance(value, dict)]
    return by_layer_type or [parameters]


def probe(runner: Runner, block_size: int) -> None:
    """Raise CheckpointError unless a prompt read in parts by the runner gets the logits of the prompt read at once.

    The prompt is short, and its blocks are scattered over the runner's cache.
    """
    decoder, num_slots = runner.decoder, PROBE_PARTS[-1]
    num_blocks, weight = -(-num_slots // block_size), decoder.token_embeddings.weight
    input_ids = torch.arange(1, num_slots + 1) * 7919 % decoder.vocab_size
    prompt = MixedPrompt(input_ids, torch.zeros(0, decoder.width))
    runs = slot_runs([*range(1, num_blocks), 0], block_size)
    inputs_embeds = decoder.embed_prompt(input_ids.to(weight.device), prompt.chunk_embeddings.to(weight.device))
    for start, stop in pairwise(PROBE_PARTS):
        logits = runner.run([Segment(prompt, [], runs, start, stop)])[0]
        expected = decoder.prefill(inputs_embeds[:stop])[0]
        difference = float((logits - expected).abs().max() / expected.abs().max())
        tolerance = TOLERANCES.get(weight.dtype, DEFAULT_TOLERANCE)
        if not difference <= tolerance:
            raise CheckpointError(
                f"decoder of type {decoder.backbone.config.model_type!r} is not supported: read in parts, a prompt "
                f"gets other logits than read at once; they differ by {difference:.1%} of the largest logit, the limit "
                f"is {tolerance:.1%}"
            )
