"""Reads and writes the safetensors files of a checkpoint's smaller parts."""

from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from refrag.errors import CheckpointError

M = TypeVar("M", bound=nn.Module)


def save_weights(module: nn.Module, path: Path, dtype: torch.dtype, metadata: dict[str, str] | None = None) -> None:
    weights = {name: weight.to(dtype).contiguous() for name, weight in module.state_dict().items()}
    save_file(weights, path, metadata)


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; train or export the checkpoint again")
    try:
        return {name: weight.float() for name, weight in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error


def load_metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def matrix_shape(weights: dict[str, torch.Tensor], name: str, path: Path) -> tuple[int, int]:
    """Return rows and columns of a matrix in a file's weights; raise CheckpointError if there is no such matrix."""
    if name not in weights or weights[name].dim() != 2:
        raise CheckpointError(f"{path} holds {sorted(weights)}; a matrix {name!r} is needed; train or export again")
    rows, columns = weights[name].shape
    return rows, columns


def fill(module: M, weights: dict[str, torch.Tensor], path: Path) -> M:
    """Return the module with these weights, in evaluation mode; raise CheckpointError if they do not fit."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        problem = " ".join(str(error).split()).rstrip(" .")
        raise CheckpointError(f"{path} does not fit: {problem}; train or export the checkpoint again") from None
    return module.eval()
