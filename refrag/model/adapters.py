"""Low-rank adapters (LoRA) of decoder and encoder, in peft's form, inside a backbone that stays what it is.

peft puts each adapter around a linear layer in place, so that `module.backbone` remains transformers' own class.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from refrag.errors import CheckpointError
from refrag.model.decoder import Decoder
from refrag.model.encoder import ChunkEncoder

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# peft names adapters inside a model; there is only one here, under the name that peft gives if asked for none.
NAME = "default"
# What peft's own model, which wraps the backbone twice, puts before each name in a file.
PREFIX = "base_model.model."


def add_adapter(module: Decoder | ChunkEncoder, rank: int, alpha: int, dropout: float = 0.0) -> None:
    """Put an adapter around every linear layer but the output head, and freeze all that is not of the adapter.

    It starts as zero: the module computes what it computed before. Its output is scaled by `alpha` / `rank`.
    """
    layers = module.backbone.modules()
    assert not any(isinstance(layer, BaseTunerLayer) for layer in layers), "there is an adapter already"
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear")
    inject_adapter_in_model(config, module.backbone, NAME)


def adapter_state(module: Decoder | ChunkEncoder) -> dict[str, Tensor]:
    """Return the adapter's weights under the names that peft gives them in a file."""
    state = get_peft_model_state_dict(module.backbone, adapter_name=NAME, save_embedding_layers=False)
    return {PREFIX + name: weight for name, weight in state.items()}


def merge(module: Decoder | ChunkEncoder) -> None:
    """Add the adapter to the weights in place, so that the backbone is a plain transformers model again."""
    merge_backbone(module.backbone)


def merged_copy(module: Decoder | ChunkEncoder) -> Any:
    """Return a copy of the backbone with the adapter merged; the module stays as it is."""
    backbone = copy.deepcopy(module.backbone)
    merge_backbone(backbone)
    return backbone


def merge_backbone(backbone: nn.Module) -> None:
    for name, layer in [*backbone.named_modules()]:
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            backbone.set_submodule(name, layer.get_base_layer())
    if hasattr(backbone, "peft_config"):
        del backbone.peft_config


def save_adapter(module: Decoder | ChunkEncoder, folder: Path, dtype: torch.dtype) -> None:
    """Write the adapter into `folder` as peft does, with weights in `dtype`."""
    folder.mkdir(parents=True, exist_ok=True)
    adapters: Any = module.backbone.peft_config
    config = copy.copy(adapters[NAME])
    # A set in peft, whose order in the file would be another each time.
    config.target_modules = sorted(config.target_modules)
    config.save_pretrained(folder)
    weights = {name: weight.to(dtype).contiguous() for name, weight in adapter_state(module).items()}
    save_file(weights, folder / ADAPTER_WEIGHTS, {"format": "pt"})


def load_adapter(module: Decoder | ChunkEncoder, folder: Path) -> None:
    """Put the adapter in `folder` into the module, frozen; raise CheckpointError if it does not fit."""
    try:
        config = LoraConfig.from_pretrained(str(folder))
        weights = {
            name.removeprefix(PREFIX): value.float() for name, value in load_file(folder / ADAPTER_WEIGHTS).items()
        }
        config.inference_mode = False
        inject_adapter_in_model(config, module.backbone, NAME)
        _fill(module, weights)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} holds an adapter that cannot be loaded: {error}; save the checkpoint again"
        ) from error
    module.requires_grad_(False)


def _fill(module: Decoder | ChunkEncoder, weights: dict[str, Tensor]) -> None:
    expected = {name.removeprefix(PREFIX): weight.shape for name, weight in adapter_state(module).items()}
    if {name: weight.shape for name, weight in weights.items()} != expected:
        differing = sorted(set(expected) ^ set(weights)) or [
            f"{name} {tuple(weight.shape)} instead of {tuple(expected[name])}"
            for name, weight in weights.items()
            if weight.shape != expected[name]
        ]
        raise ValueError(f"it does not fit its base model: {', '.join(differing[:3])}")
    set_peft_model_state_dict(module.backbone, weights, adapter_name=NAME)
