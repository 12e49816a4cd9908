"""Describes the machine and the commit that a result was measured with, for every result file."""

import os
import platform
import subprocess
import sys
from pathlib import Path

from refrag.variables import COMMIT


def describe_environment() -> dict[str, object]:
    cpu = f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores"
    return {"machine": ", ".join([*gpu_names(), cpu]), "commit": current_commit()}


def gpu_names() -> list[str]:
    """Return the names of the GPUs that torch can compute on; none where torch is not in use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def cpu_name() -> str:
    """Return the processor's name as Linux gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def current_commit() -> str:
    """Return the commit of the working tree, with the mark -dirty if it holds changes.

    Where git tells none, as in a copy without its history, REFRAG_COMMIT may; else it is "unknown".
    """
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent).stdout
    except OSError:  # git is not installed
        told = ""
    return told.strip() or os.environ.get(COMMIT, "unknown")
