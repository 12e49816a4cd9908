"""Metrics of a run: one line of JSON per step, TensorBoard's events, and a progress bar."""

import json
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
NUM_CURVE_POINTS = 25

Figures = dict[str, float]


class Metrics:
    """Writer of the metrics of all steps after `step`.

    It first cuts off what a killed run wrote of those steps, so that none appears twice.
    """

    def __init__(self, name: str, directory: Path, step: int, num_steps: int) -> None:
        path = directory / METRICS
        _cut_after(step, path)
        self._lines = path.open("a")
        self._board = _open_board(directory / "tensorboard", first_step=step + 1)
        self._bar = tqdm(desc=name, total=num_steps, initial=step, unit="step", disable=None)

    def write(self, step: int, figures: Figures) -> None:
        self._lines.write(json.dumps({"step": step, **figures}) + "\n")
        self._lines.flush()
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)
        self._bar.update()
        self._bar.set_postfix(loss=f"{figures['loss']:.3f}")

    def close(self) -> None:
        self._lines.close()
        if self._board is not None:
            self._board.close()
        self._bar.close()


def mean_figures(figures: Iterable[Figures]) -> Figures:
    """Return the mean of each figure over the entries that have it."""
    values: dict[str, list[float]] = {}
    for each in figures:
        for name, value in each.items():
            values.setdefault(name, []).append(float(value))
    return {name: sum(several) / len(several) for name, several in values.items()}


def step_figures(figures: Sequence[Figures], num_updates: int) -> Figures:
    """Merge the figures of a step's forward passes into means, except for tokens, which add up, each batch once."""
    means = mean_figures(figures)
    if "tokens" in means:
        means["tokens"] = sum(each.get("tokens", 0) for each in figures) / num_updates
    return means


def read_curve(directory: Path) -> list[Figures]:
    """Return a run's metrics as up to NUM_CURVE_POINTS means over equal stretches, each with its last step.

    None before the first step; half a line, which a kill can leave, is left out.
    """
    written = (directory / METRICS).read_text().splitlines()
    lines = [json.loads(line) for line in written if math.isfinite(_step_of(line))]
    length = max(1, -(-len(lines) // NUM_CURVE_POINTS))
    stretches = [lines[start : start + length] for start in range(0, len(lines), length)]
    return [{**_rounded(mean_figures(stretch)), "step": stretch[-1]["step"]} for stretch in stretches]


def _rounded(figures: Figures) -> Figures:
    return {name: float(f"{value:.4g}") for name, value in sorted(figures.items())}


def _cut_after(step: int, path: Path) -> None:
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines(keepends=True) if _step_of(line) <= step]
    shortened = path.with_suffix(".partial")
    shortened.write_text("".join(kept))
    shortened.replace(path)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        # A kill can leave half a line. It is of a step that no snapshot holds, so it may go.
        return float("inf")


def _open_board(directory: Path, first_step: int) -> Any:
    """Return TensorBoard's writer, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.warning("tensorboard is not installed, so metrics go to metrics.jsonl alone; install it to see curves")
        return None
    return SummaryWriter(str(directory), purge_step=first_step)
