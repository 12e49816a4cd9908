"""Describes the machine and the commit that a result was measured with, for every result file."""

import os
import platform
import subprocess
from pathlib import Path


def describe_environment() -> dict[str, object]:
    return {"machine": f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores", "commit": current_commit()}


def cpu_name() -> str:
    """Return the processor's name as Linux gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def current_commit() -> str:
    """Return the commit of the working tree, with the mark -dirty if it holds changes; "unknown" without git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    except OSError:  # git is not installed
        return "unknown"
    return result.stdout.strip() or "unknown"
