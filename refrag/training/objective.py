"""Interfaces between a stage and the loop: an objective to minimise, and a source of batches for it."""

import random
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from refrag.training.metrics import Figures


class Outcome(NamedTuple):
    """Loss of a batch, to minimise, and figures to log."""

    # A tuple, because FSDP and autocast find tensors in tuples but not in dataclasses.
    loss: Tensor
    figures: Figures


class Batch(Protocol):
    """Anything that moves to a device."""

    def to(self, device: torch.device) -> Any: ...


class BatchSource(Protocol):
    """Stream of batches; each process has its own."""

    def draw(self, rng: random.Random, progress: float) -> Batch:
        """Return the next batch, as it suits `progress`, the share of the steps that are over."""

    def state(self) -> dict[str, Any]:
        """Return the position in the stream as plain JSON values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from that position."""


class Objective(nn.Module):
    """Loss of a stage as a module; its submodules are exactly the parts it uses, the frozen ones without gradients.

    Every part that trains takes part in every loss, and a rollout calls its parts equally often on every process:
    processes that share weights wait for each other.
    """

    needs_rollout: ClassVar[bool] = False
    updates_per_batch: int = 1

    def forward(self, batch: Any, rollout_seed: int | None = None) -> Any:
        """Return the `Outcome` of `batch`; with `rollout_seed`, return a new batch with rollouts in it instead."""
        raise NotImplementedError
