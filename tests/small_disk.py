"""A real file system of little room, where one may be mounted."""

import contextlib
import os
import shutil
import subprocess

import pytest

needs_mount = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mount") is None, reason="a file system can only be mounted by root"
)


@contextlib.contextmanager
def small_disk(folder, num_kib):
    """Yield where it is mounted; skip the test where even root may not mount it."""
    place = folder / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_kib}k", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
