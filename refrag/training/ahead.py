"""Draws the batches of the next step while this one trains, so that an accelerator need not wait for its data."""

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from refrag.training.objective import BatchSource


class Drawn(NamedTuple):
    """Batches of one step, and the source's position behind them, as JSON."""

    batches: list[Any]
    position: str


class DrawsAhead:
    """Batches of one step after another, from a thread that is one step ahead.

    draw: returns the batches of the step with this number. Nothing else may draw from `source`, whose position goes
    into a snapshot as it was behind the step that trains, without the one drawn ahead.
    """

    def __init__(self, source: BatchSource, draw: Callable[[int], list[Any]], num_steps: int) -> None:
        self._source, self._draw, self._num_steps = source, draw, num_steps
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="draws-ahead")
        self._next: Future[Drawn] | None = None
        self._position: str | None = None

    @property
    def position(self) -> str:
        """The source's position behind the batches that were taken last, as JSON."""
        return json.dumps(self._source.state()) if self._position is None else self._position

    def take(self, step: int) -> list[Any]:
        """Return the batches of this step, and begin to draw those of the next; raise what drawing raised."""
        drawn = (self._next or self._begin(step)).result()
        self._next = self._begin(step + 1) if step + 1 < self._num_steps else None
        self._position = drawn.position
        return drawn.batches

    def close(self) -> None:
        """End the thread, once it is through with what it draws."""
        self._thread.shutdown(cancel_futures=True)

    def _begin(self, step: int) -> "Future[Drawn]":
        return self._thread.submit(self._draw_step, step)

    def _draw_step(self, step: int) -> Drawn:
        return Drawn(self._draw(step), json.dumps(self._source.state()))
