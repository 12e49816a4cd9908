"""Common parts of every benchmark's report: machine, commit, command, medians of many values, output as JSON."""

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refrag.machine.environment import describe_environment

Report = dict[str, Any]


def describe_run(module: str) -> Report:
    """Return the first entries of every report: the command, and the environment that it ran in."""
    return {"command": " ".join([f"python -m {module}", *sys.argv[1:]]), **describe_environment()}


def write(report: Report, output: Path | None) -> None:
    """Write the report to `output`, if given: whole, or as far as it has come."""
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report, indent=2) + "\n")


def emit(report: Report, draw: Callable[[Report], str], output: Path | None) -> None:
    """Write the report to `output`, if given; print what `draw` makes of it, then the report as one line of JSON."""
    write(report, output)
    print(draw(report), end="\n\n")
    print(json.dumps(report))


def summarise(seconds: Sequence[float]) -> Report:
    """Return median, 95th and 99th percentile in milliseconds, and the number of values."""
    median, p95, p99 = (round(1e3 * float(np.percentile(seconds, q)), 2) for q in (50, 95, 99))
    return {"p50_ms": median, "p95_ms": p95, "p99_ms": p99, "n": len(seconds)}


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median of the ratios within a turn, of values that were measured in turns."""
    return round(statistics.median(ratios(numerators, denominators)), 3)


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Return the ratio within each turn."""
    return [n / d for n, d in zip(numerators, denominators, strict=True)]
