"""Draws the batches of each step, on request by other processes, so that an accelerator need not wait for its data."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset

from refrag.errors import RefragError
from refrag.training.objective import BatchSource

# Steps that each process draws ahead.
STEPS_AHEAD = 2


class Drawn(NamedTuple):
    """Batches of one step, and the source's position behind them, as JSON.

    error: what the source said is wrong, in place of batches. Raised in another process, it would come as a traceback.
    """

    batches: list[Any]
    position: str
    error: RefragError | None = None


class Draws:
    """Batches of one step after another.

    position: the source's, behind the batches that were taken last, as JSON.
    """

    def __init__(self, drawn: Iterator[Drawn], position: str) -> None:
        self._drawn, self.position = drawn, position

    def take(self) -> list[Any]:
        """Return the batches of the next step; raise what drawing raised."""
        drawn = next(self._drawn)
        if drawn.error is not None:
            raise drawn.error
        self.position = drawn.position
        return drawn.batches

    def close(self) -> None:
        """Let go of the loader's iterator, with which its processes end."""
        self._drawn = iter(())


@contextmanager
def open_draws(
    source: BatchSource, draw: Callable[[int], list[Any]], steps: range, num_workers: int = 0
) -> Iterator[Draws]:
    """Yield the draws of these steps, and end the processes that drew them.

    draw: returns the batches of the step with this number; nothing else may draw from `source`.
    steps: numbers of the steps to come.
    num_workers: processes that draw ahead, 0 to draw in this one when the batches are taken. A source with a position,
        which goes on where it stopped, is in one of them alone.
    """
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
        worker_init_fn=_leave_group,
    )
    draws = Draws(iter(loader), json.dumps(source.state()))
    try:
        yield draws
    finally:
        draws.close()


class _Steps(Dataset[Drawn]):
    def __init__(self, source: BatchSource, draw: Callable[[int], list[Any]], steps: range) -> None:
        self.source, self.draw, self.steps = source, draw, steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> Drawn:
        try:
            return Drawn(self.draw(self.steps[index]), json.dumps(self.source.state()))
        except RefragError as error:
            return Drawn([], "", error)


def _as_drawn(drawn: Any) -> Any:
    """Return what was drawn: by itself the loader would turn lists and arrays into tensors."""
    return drawn


def _leave_group(_: int) -> None:
    """Leave it to the training process to end this one: a signal to its whole group would end both at once."""
    os.setpgid(0, 0)
