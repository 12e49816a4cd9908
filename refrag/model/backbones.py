"""Loads and saves the Hugging Face models inside of a checkpoint, as plain Hugging Face folders."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from refrag.context.deployed import DECODER, ENCODER
from refrag.errors import CheckpointError
from refrag.model.decoder import Decoder
from refrag.model.encoder import ChunkEncoder


def load_pretrained(auto_class: type, folder: Path, **options: Any) -> Any:
    """Load whatever `auto_class` loads from a folder, or raise CheckpointError that names the folder."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing; a REFRAG checkpoint holds {DECODER}/ and {ENCODER}/")
    return load_named(auto_class, str(folder), local_files_only=True, **options)


def load_named(auto_class: type, name: str, **options: Any) -> Any:
    """Load whatever `auto_class` loads from a folder or from the Hugging Face hub.

    Raises CheckpointError that names it if it is not there, or cut off, or lacks weights: transformers would draw these
    at random, anew at each loading.
    """
    try:
        with _quiet_transformers():
            loaded = auto_class.from_pretrained(name, output_loading_info=True, **options)  # type: ignore[attr-defined]
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"{name} cannot be loaded: {error}; name a folder that holds a whole Hugging Face model, or a model of the "
            "hub"
        ) from error
    model, report = loaded
    # An encoder's pooler is never used, and many models are published without it.
    if lacking := sorted(key for key in report["missing_keys"] if "pooler" not in key.split(".")):
        raise CheckpointError(
            f"{name} has no weights for {len(lacking)} parameters, such as {lacking[0]}; copy or download it again, "
            "whole"
        )
    return model


def has_adapter(module: Decoder | ChunkEncoder) -> bool:
    """Return whether a low-rank adapter stands inside the backbone, apart from its weights."""
    return getattr(module.backbone, "peft_config", None) is not None


def is_of_adapter(parameter: str) -> bool:
    """Return whether a backbone's parameter of that name belongs to an adapter."""
    return ".lora_" in parameter


def save_whole(module: Decoder | ChunkEncoder, folder: Path, dtype: torch.dtype) -> None:
    """Write a plain Hugging Face model, with the adapter merged if there is one."""
    backbone: Any = module.backbone
    if has_adapter(module):
        # peft takes long to import, and a server has nothing to merge.
        from refrag.model.adapters import merged_copy

        backbone = merged_copy(module)
    state = {name: weight.to(dtype) for name, weight in backbone.state_dict().items()}
    with _quiet_transformers():
        backbone.save_pretrained(folder, state_dict=state)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence progress bars, and the report that an encoder's unused pooler has no weights."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
