"""Finds answers in texts: which passage, or which chunk of it, holds one."""

import re
from collections.abc import Iterable, Iterator

from refrag.data.scripts import is_inside_word

# Answers that a passage gives without saying them.
VERDICT = re.compile(r"\s*(yes|no|true|false)[.!]?\s*", re.IGNORECASE)


def is_verdict(answer: str) -> bool:
    """Return whether the answer is yes, no, true or false: where these words stand is not where a text says so."""
    return VERDICT.fullmatch(answer) is not None


def find_answer(text: str, answer: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each place where the answer stands as words of their own, whatever their case.

    An answer inside a word is none: "no" does not stand in "nobody". In scripts without spaces between words nothing
    tells where one ends, so that the answer's characters are enough.
    """
    if not (answer := answer.strip()):
        return
    pattern, start = re.compile(re.escape(answer), re.IGNORECASE), 0
    while match := pattern.search(text, start):
        is_part = is_inside_word(text, match.start()) or is_inside_word(text, match.end())
        start = match.start() + 1 if is_part else match.end()
        if not is_part:
            yield match.span()


def holds_any(text: str, answers: Iterable[str]) -> bool:
    """Return whether one of the answers stands in the text."""
    return any(True for answer in answers for _ in find_answer(text, answer))
