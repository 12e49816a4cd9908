"""Finds answers in texts: which passage, or which chunk of it, holds one."""

import re
from collections.abc import Iterable, Iterator


def find_answer(text: str, answer: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each place where the answer stands as words of their own, whatever their case.

    An answer inside a word is none: "no" does not stand in "nobody".
    """
    if not answer.strip():
        return
    for match in re.finditer(rf"(?<!\w){re.escape(answer.strip())}(?!\w)", text, re.IGNORECASE):
        yield match.span()


def holds_any(text: str, answers: Iterable[str]) -> bool:
    """Return whether one of the answers stands in the text."""
    return any(True for answer in answers for _ in find_answer(text, answer))
