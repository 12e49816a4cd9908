"""Dataclasses of tensors that move to a device as one."""

from dataclasses import fields, replace
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Movable:
    """Base of dataclasses of tensors, other such dataclasses, and plain values."""

    def to(self: T, device: torch.device) -> T:
        """Return a copy with all tensors on the device."""
        moved = {
            field.name: value.to(device)
            for field in fields(self)  # type: ignore[arg-type]
            if isinstance(value := getattr(self, field.name), Tensor | Movable)
        }
        return replace(self, **moved)  # type: ignore[type-var]
