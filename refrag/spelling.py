"""Finds the known name that an unknown one most likely stands for, for the messages that refuse it."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is spelt most alike, whatever its case and hyphens; None if none is near."""
    by_spelling = {_plain(each): each for each in known}
    found = get_close_matches(_plain(name), by_spelling, n=1)
    return by_spelling[found[0]] if found else None


def suggestion(names: Iterable[str], known: Iterable[str]) -> str:
    """Return "; is a or b meant?" for the names that have a near one, or nothing."""
    known = list(known)
    found = dict.fromkeys(near for name in names if (near := nearest_name(name, known)))
    return f"; is {' or '.join(found)} meant?" if found else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
