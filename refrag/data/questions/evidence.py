"""Finds answers in texts: which passage, or which chunk of it, holds one."""

import re
from collections.abc import Iterable, Iterator

from refrag.data.scripts import UNSPACED, is_unspaced

# A part of a word that its script would have gone on with.
PART = rf"[^\W{UNSPACED}]"


def find_answer(text: str, answer: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each place where the answer stands as words of their own, whatever their case.

    An answer inside a word is none: "no" does not stand in "nobody". In scripts without spaces between words nothing
    tells where one ends, so that the answer's characters are enough.
    """
    if not (answer := answer.strip()):
        return
    before, after = "" if is_unspaced(answer[0]) else f"(?<!{PART})", "" if is_unspaced(answer[-1]) else f"(?!{PART})"
    for match in re.finditer(before + re.escape(answer) + after, text, re.IGNORECASE):
        yield match.span()


def holds_any(text: str, answers: Iterable[str]) -> bool:
    """Return whether one of the answers stands in the text."""
    return any(True for answer in answers for _ in find_answer(text, answer))
