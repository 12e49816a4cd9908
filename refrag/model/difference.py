"""Loads and saves what a decoder or an encoder differs in from its base model: a low-rank adapter, or nothing."""

from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig

from refrag.base_models.cache import resolve
from refrag.base_models.reference import BaseModel
from refrag.errors import CheckpointError
from refrag.model.adapters import ADAPTER_CONFIG, load_adapter, merge, save_adapter
from refrag.model.backbones import has_adapter, load_pretrained
from refrag.model.bases import RECORD, BaseRecord, record_base, refuse_other_base
from refrag.model.decoder import Decoder
from refrag.model.encoder import ChunkEncoder

GENERATION_CONFIG = "generation_config.json"


def load_difference(module: Decoder | ChunkEncoder, folder: Path, base: BaseModel, merge_adapter: bool) -> None:
    """Make the base model in `module` what was trained of it, from a part's `folder`.

    Raises CheckpointError if the adapter cannot be loaded, or is one of another base model.
    """
    if (folder / RECORD).is_file():
        record = BaseRecord.from_json((folder / RECORD).read_text(), str(folder / RECORD))
        refuse_other_base(base, record, f"the adapter in {folder}")
    if (folder / ADAPTER_CONFIG).is_file():
        if not (folder / RECORD).is_file():
            raise CheckpointError(f"{folder} has no {RECORD}, which tells what its adapter was trained on; copy it too")
        load_adapter(module, folder)
        if merge_adapter:
            merge(module)
    if (folder / GENERATION_CONFIG).is_file():
        module.backbone.generation_config = GenerationConfig.from_pretrained(folder)


def save_difference(module: Decoder | ChunkEncoder, folder: Path, base: BaseModel, dtype: torch.dtype) -> None:
    """Write what `module` differs in from its base model: its adapter, if it has one, and where answers end."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text(record_base(base).to_json())
    if has_adapter(module):
        save_adapter(module, folder, dtype)
    if isinstance(module, Decoder):
        module.backbone.generation_config.save_pretrained(folder)


def differs_by_adapter_alone(module: Decoder | ChunkEncoder, base: BaseModel) -> bool:
    """Return whether the module's weights are the base model's, not counting an adapter."""
    auto_class = AutoModelForCausalLM if isinstance(module, Decoder) else AutoModel
    theirs = load_pretrained(auto_class, resolve(base), dtype=torch.float32).state_dict()
    return all(torch.equal(weight.cpu(), theirs[name]) for name, weight in _without_adapter(module.backbone).items())


def _without_adapter(backbone: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights that the backbone had before an adapter was put into it, under their names of then."""
    state = dict(backbone.state_dict())
    for layer in [name for name, module in backbone.named_modules() if isinstance(module, BaseTunerLayer)]:
        for name in [name for name in state if name.startswith(f"{layer}.")]:
            weight, own = state.pop(name), name.removeprefix(f"{layer}.")
            if own.startswith("base_layer."):
                state[f"{layer}.{own.removeprefix('base_layer.')}"] = weight
    return state
