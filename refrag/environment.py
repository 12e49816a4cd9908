"""The machine: what a result was measured on, which goes into every result file, and how to compute on it."""

import os
import platform
import subprocess
from pathlib import Path

import torch


def flush_denormals() -> None:
    """Take numbers too small for a CPU's fast arithmetic for zero, before torch has started its threads.

    A sure softmax, and gradients from a few answer tokens, are full of them: backward takes a quarter of the time.
    """
    torch.set_flush_denormal(True)


def describe_environment() -> dict[str, object]:
    return {"machine": f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores", "commit": current_commit()}


def cpu_name() -> str:
    """The processor's name as Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def current_commit() -> str:
    """The commit of the working tree, with a mark if it holds changes."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    except OSError:  # git is not installed
        return "unknown"
    return result.stdout.strip() or "unknown"
