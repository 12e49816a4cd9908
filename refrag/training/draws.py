"""Draws the batches of each step, on request by other processes, so that an accelerator need not wait for its data."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset

from refrag.training.objective import BatchSource

# Steps that each process draws ahead.
STEPS_AHEAD = 2


class Drawn(NamedTuple):
    """Batches of one step, and the source's position behind them, as JSON."""

    batches: list[Any]
    position: str


class Draws:
    """Batches of one step after another.

    draw: returns the batches of the step with this number; nothing else may draw from `source`.
    steps: numbers of the steps to come.
    num_workers: processes that draw ahead, 0 to draw in this one when the batches are taken. A source with a position,
        which goes on where it stopped, is in one of them alone.
    position: the source's, behind the batches that were taken last, as JSON.
    """

    def __init__(
        self, source: BatchSource, draw: Callable[[int], list[Any]], steps: range, num_workers: int = 0
    ) -> None:
        has_position = bool(source.state())
        if has_position:
            num_workers = min(1, num_workers)
        loader = DataLoader(
            _Steps(source, draw, steps),
            batch_size=None,
            collate_fn=_as_drawn,
            num_workers=num_workers,
            # The source holds models on a device, which a process that starts anew could not have.
            multiprocessing_context="fork" if num_workers else None,
            prefetch_factor=STEPS_AHEAD if num_workers else None,
        )
        self._drawn = iter(loader)
        self.position = json.dumps(source.state())

    def take(self) -> list[Any]:
        """Return the batches of the next step."""
        drawn = next(self._drawn)
        self.position = drawn.position
        return drawn.batches


class _Steps(Dataset[Drawn]):
    def __init__(self, source: BatchSource, draw: Callable[[int], list[Any]], steps: range) -> None:
        self.source, self.draw, self.steps = source, draw, steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> Drawn:
        return Drawn(self.draw(self.steps[index]), json.dumps(self.source.state()))


def _as_drawn(drawn: Any) -> Any:
    """Return what was drawn: by itself the loader would turn lists and arrays into tensors."""
    return drawn
