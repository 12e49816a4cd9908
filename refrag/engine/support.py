"""Checks that the engine can run a decoder, and learns what each of its layers keeps in the KV cache.

Any decoder will do whose positions see each other through transformers' attention interface and in no other way. There
is no list of architectures. What a config tells is refused at once. Then one chunk embedding is read at the window's
last position, and a short mixed prompt twice, at once by the model's own attention and in parts by the engine's: the
logits must agree. A decoder that fails is looked into further, so that the refusal names the property it lacks.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from refrag.engine.kv_cache import KVCache, LayerShape
from refrag.engine.probe import PROBE_SLOTS, probe
from refrag.engine.recorder import Recorder, record
from refrag.engine.runner import Runner
from refrag.errors import CheckpointError
from refrag.model.decoder import Decoder
from refrag.model.faults import ids_fault, known_fault, tried_fault
from refrag.model.positions import beyond_training, ropes, too_short, uses_alibi

log = logging.getLogger(__name__)

LAYER_TYPES = {"full_attention", "sliding_attention"}
# These scale positions by the longest prompt so far, even if another request sent it.
LENGTH_DEPENDENT_ROPES = {"dynamic", "longrope"}
PROBE_BLOCK_SIZE = 4


def layer_shapes(decoder: Decoder, max_prompt_slots: int) -> list[LayerShape]:
    """Return what each layer keeps in the KV cache, or raise CheckpointError if the engine cannot run the decoder.

    A decoder that may be asked for more than it was trained on is warned of in the log.
    """
    fault = known_fault(decoder, max_prompt_slots) or _config_fault(decoder.config, max_prompt_slots)
    if fault is not None:
        raise _unsupported(decoder, fault)
    if warning := beyond_training(decoder.config, max_prompt_slots):
        log.warning(warning)
    _let_experts_compute(decoder)
    recorder = _record(decoder, max_prompt_slots)
    if fault := _recorded_fault(decoder, recorder):
        raise _unsupported(decoder, fault)
    shapes = [recorder.shapes[layer] for layer in range(decoder.config.num_hidden_layers)]
    _try(decoder, shapes)
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


def _config_fault(config: Any, max_prompt_slots: int) -> str | None:
    if others := sorted(set(getattr(config, "layer_types", None) or []) - LAYER_TYPES):
        return f"it has layers of type {', '.join(others)}; the engine supports only {', '.join(sorted(LAYER_TYPES))}"
    for rope in ropes(config):
        trained = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        if rope.get("rope_type") in LENGTH_DEPENDENT_ROPES and max_prompt_slots > trained:
            return (
                f"its RoPE scaling {rope['rope_type']!r} makes every position depend on the length of the prompt, so "
                f"that no part of a prompt can be kept; lower max_prompt_slots in refrag.json from {max_prompt_slots} "
                f"to {trained}, up to which nothing is scaled"
            )
    return None


def _let_experts_compute(decoder: Decoder) -> None:
    """Let a mixture of experts compute them one by one in double precision, for which torch has no grouped product."""
    if decoder.token_embeddings.weight.dtype == torch.float64 and decoder.backbone._can_set_experts_implementation():
        decoder.backbone.set_experts_implementation("eager")


def _record(decoder: Decoder, max_prompt_slots: int) -> Recorder:
    """Record one chunk embedding read at the window's last position, or raise CheckpointError if it cannot be."""
    recorder = Recorder()
    try:
        record(decoder, recorder, max_prompt_slots - 1)
    except Exception as error:
        raise _unsupported(decoder, _unreadable(decoder, recorder, max_prompt_slots, error)) from error
    return recorder


def _unreadable(decoder: Decoder, recorder: Recorder, max_prompt_slots: int, error: Exception) -> str:
    if not recorder.calls and not decoder.backbone._supports_attention_backend:
        return _own_attention(decoder, range(decoder.config.num_hidden_layers))
    if _can_read(decoder, 0):
        return too_short(_count_positions(decoder, max_prompt_slots), max_prompt_slots)
    return tried_fault(decoder) or f"reading one row with the engine's attention failed: {error}"


def _count_positions(decoder: Decoder, limit: int) -> int:
    """Return how many positions can be read, of which there is one and fewer than `limit`."""
    first_unread, last_read = limit - 1, 0
    while first_unread - last_read > 1:
        middle = (first_unread + last_read) // 2
        if _can_read(decoder, middle):
            last_read = middle
        else:
            first_unread = middle
    return first_unread


def _can_read(decoder: Decoder, position: int) -> bool:
    try:
        record(decoder, Recorder(), position)
    except Exception:
        return False
    return True


def _recorded_fault(decoder: Decoder, recorder: Recorder) -> str | None:
    layers = range(decoder.config.num_hidden_layers)
    if recorder.inputs:
        return (
            f"its attention is computed with {', '.join(sorted(recorder.inputs))} besides queries, keys and values, "
            "which the engine's is not"
        )
    if beyond := sorted(set(recorder.calls) - set(layers)):
        return (
            f"its config gives it {len(layers)} layers (num_hidden_layers), but layers {beyond} compute attention too"
        )
    if repeated := sorted(layer for layer, count in recorder.calls.items() if count > 1):
        return f"layers {repeated} compute attention more than once for a slot, and the engine keeps one state of each"
    if missing := [layer for layer in layers if layer not in recorder.shapes]:
        return _own_attention(decoder, missing)
    if blind := [layer for layer in layers if recorder.windows[layer] != _window(decoder.config, layer)]:
        return (
            f"layers {blind} are to see {_window(decoder.config, blind[0]) or 'all'} positions, but ask the attention "
            f"for {recorder.windows[blind[0]] or 'all'}"
        )
    return None


def _own_attention(decoder: Decoder, layers: Iterable[int]) -> str:
    base = decoder.backbone.base_model
    # BLOOM's config does not say so.
    has_alibi = uses_alibi(decoder.config) or hasattr(base, "build_alibi_tensor")
    names = {type(module).__name__ for module in base.modules()}
    classes = sorted(name for name in names if "Attention" in name) or [type(base).__name__]
    return (
        f"layers {list(layers)} compute attention in code of their own ({', '.join(classes)}"
        f"{', with an ALiBi bias' if has_alibi else ''}) and not through transformers' attention interface, so that "
        "the engine cannot keep their state"
    )


def _window(config: Any, layer: int) -> int | None:
    """Return how many positions the config lets the layer see; None for all."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    layer_types = getattr(config, "layer_types", None)
    return window if layer_types is None or layer_types[layer] == "sliding_attention" else None


def _try(decoder: Decoder, shapes: Sequence[LayerShape]) -> None:
    """Probe the decoder, or raise CheckpointError, which names the property that it lacks if that can be found."""
    try:
        probe(Runner(decoder, _probe_cache(decoder, shapes)), PROBE_BLOCK_SIZE)
        fault = ids_fault(decoder)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if fault := tried_fault(decoder):
            raise _unsupported(decoder, fault) from error
        if isinstance(error, CheckpointError):
            raise
        raise _unsupported(decoder, f"reading a prompt in parts failed: {error}") from error
    if fault is not None:
        raise _unsupported(decoder, fault)


def _probe_cache(decoder: Decoder, shapes: Sequence[LayerShape]) -> KVCache:
    weight = decoder.token_embeddings.weight
    return KVCache(shapes, PROBE_SLOTS, weight.dtype, weight.device)


def _unsupported(decoder: Decoder, fault: str) -> CheckpointError:
    return CheckpointError(f"decoder of type {decoder.config.model_type!r} is not supported: {fault}")
