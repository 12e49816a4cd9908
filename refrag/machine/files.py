"""Files and folders that are moved all together or not at all."""

import os
from collections.abc import Iterable
from pathlib import Path


def move_all(moves: Iterable[tuple[Path, Path]]) -> None:
    """Rename each source to its target, in order; if one cannot be, or Ctrl-C comes, all go back to where they were."""
    begun: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            begun.append((source, target))
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
    except BaseException:
        for source, target in reversed(begun):
            # The last one may have been moved or not.
            if not os.path.lexists(source):
                target.rename(source)
        raise
