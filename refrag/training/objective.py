"""What a stage gives to the loop: an objective to minimise, and a source of batches for it."""

import random
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from refrag.training.metrics import Figures


class Outcome(NamedTuple):
    """What an objective makes of a batch: the loss to minimise, and figures to log."""

    # A tuple, because FSDP and autocast find tensors in tuples but not in dataclasses.
    loss: Tensor
    figures: Figures


class Batch(Protocol):
    def to(self, device: torch.device) -> Any: ...


class BatchSource(Protocol):
    """A stream of batches; each process has its own, and `state` is its position as plain JSON values."""

    def draw(self, rng: random.Random, progress: float) -> Batch: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


class Objective(nn.Module):
    """What a stage minimises; its submodules are exactly the parts it uses, the frozen ones without gradients.

    Every trainable part takes part in every loss, and a rollout calls its parts equally often on every process:
    processes that share weights wait for each other.
    """

    needs_rollout: ClassVar[bool] = False
    updates_per_batch: int = 1

    def forward(self, batch: Any, rollout_seed: int | None = None) -> Any:
        """The `Outcome` of `batch`; given `rollout_seed`, instead a new batch with rollouts in it."""
        raise NotImplementedError
