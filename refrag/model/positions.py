"""Finds how far a decoder's positions reach: where their table ends, where RoPE goes beyond what training has seen."""

from typing import Any


def ropes(config: Any) -> list[dict[str, Any]]:
    """Return the RoPE parameters: one dict for the whole model or, as in Gemma 3, one for each type of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [value for value in parameters.values() if isinstance(value, dict)]
    return by_layer_type or ([parameters] if parameters else [])


def short_table_fault(config: Any, max_prompt_slots: int) -> str | None:
    """Return what is wrong if a table of positions ends before the window does; RoPE needs no table."""
    length = getattr(config, "max_position_embeddings", None)
    if length is None or ropes(config) or uses_alibi(config):
        return None
    return None if max_prompt_slots <= length else too_short(length, max_prompt_slots)


def too_short(length: int, max_prompt_slots: int) -> str:
    """Say that there are positions for `length` slots alone."""
    return (
        f"it has positions for {length} slots (max_position_embeddings in its config), and max_prompt_slots in "
        f"refrag.json is {max_prompt_slots}; lower max_prompt_slots to {length}, or name a decoder with more positions"
    )


def beyond_training(config: Any, max_prompt_slots: int) -> str | None:
    """Return a warning if RoPE has to reach beyond the trained length, with its scaling taken into account."""
    length = getattr(config, "max_position_embeddings", None)
    if length is None or not ropes(config):
        return None
    reach = max(length, *(_scaled_length(rope, length) for rope in ropes(config)))
    if max_prompt_slots <= reach:
        return None
    return (
        f"max_prompt_slots in refrag.json is {max_prompt_slots}, but the decoder's RoPE was trained up to position "
        f"{reach} (max_position_embeddings and rope_parameters in its config): answers to longer prompts may be poor; "
        f"lower max_prompt_slots to {reach}, or name a decoder trained on longer texts"
    )


def uses_alibi(config: Any) -> bool:
    """Return whether the config asks for ALiBi, a bias of attention that takes the place of positions."""
    return bool(getattr(config, "alibi", False) or getattr(getattr(config, "attn_config", None), "alibi", False))


def _scaled_length(rope: dict[str, Any], length: int) -> int:
    original = rope.get("original_max_position_embeddings") or length
    return int(original * (rope.get("factor") or 1.0))
