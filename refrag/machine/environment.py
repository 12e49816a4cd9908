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


def compute_alone() -> int:
    """Let no other of torch's threads help the calling thread from now on, and return how many computed with it.

    For a process in which another thread computes: each thread that ever had help keeps its helpers, and once there are
    more threads than cores in all, GNU's OpenMP lets everybody sleep after each of the hundreds of parallel parts of a
    forward pass, instead of waiting awake for the next one. A prefill of 573 slots of the demo decoder took 38 ms so,
    and takes 29 where one thread alone has helpers.
    """
    # Until a thread has asked once, it takes over what others set later.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    return num_threads


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
