"""Removes what servers have left behind whose starter and process were both killed: shared memory and folders.

Each run of a server holds a lock on a file, /dev/shm/refrag-<id>-lock, which the kernel releases when its last process
has ended. Unlike process ids, that is right for containers too that share /dev/shm. The file names the run's folder.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
FOLDER_PREFIX = "refrag-server-"
_PREFIX, _LOCK = "refrag-", "lock"


def take_lock(shared_memory_prefix: str, folder: Path) -> int:
    """Return the lock of a new run, whose shared memory is named by the prefix; the run's processes are to inherit it.

    shared_memory_prefix: begins with "refrag-" and ends with "-".
    """
    handle = os.open(SHARED_MEMORY / f"{shared_memory_prefix}{_LOCK}", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    os.write(handle, str(folder).encode())
    return handle


def remove_run(shared_memory_prefix: str) -> None:
    """Remove the shared memory of a run that has ended, and its lock."""
    for region in SHARED_MEMORY.glob(f"{shared_memory_prefix}*"):
        region.unlink(missing_ok=True)


def remove_leftovers() -> None:
    """Remove what runs have left whose processes are all gone; those of other users are theirs to remove."""
    for path in SHARED_MEMORY.glob(f"{_PREFIX}*-{_LOCK}"):
        with suppress(OSError), _if_free(path) as folder:
            if folder.name.startswith(FOLDER_PREFIX):
                shutil.rmtree(folder, ignore_errors=True)
            remove_run(path.name.removesuffix(_LOCK))


@contextmanager
def _if_free(path: Path) -> Iterator[Path]:
    """Hold the lock meanwhile, and yield the folder in its file; raise OSError if a process or a user still owns it."""
    handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        if os.fstat(handle).st_uid != os.geteuid():
            raise PermissionError(f"{path} belongs to another user")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield Path(os.read(handle, 4096).decode(errors="replace"))
    finally:
        os.close(handle)
