"""What every benchmark reports alike: one JSON object with machine, commit and command, and medians of many values."""

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
    """Whatever else it holds, a report begins so."""
    return {"command": " ".join([f"python -m {module}", *sys.argv[1:]]), **describe_environment()}


def emit(report: Report, draw: Callable[[Report], str], output: Path | None) -> None:
    """As a file, then what is drawn of it for people, and as the last line."""
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report, indent=2) + "\n")
    print(draw(report), end="\n\n")
    print(json.dumps(report))


def summarise(seconds: Sequence[float]) -> Report:
    """Milliseconds: median, 95th and 99th percentile, and of how many."""
    median, p95, p99 = (round(1e3 * float(np.percentile(seconds, q)), 2) for q in (50, 95, 99))
    return {"p50_ms": median, "p95_ms": p95, "p99_ms": p99, "n": len(seconds)}


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Of values that were measured in turns: the median of the ratios within a turn."""
    return round(statistics.median(n / d for n, d in zip(numerators, denominators, strict=True)), 3)
