"""Finds the characters of a passage that each of its chunks stands for: what citations name.

passage       O d o _ p l a y s _ 🎵 .          in its template: a space in front, a line's end behind
tokens      _Odo   _plays  _🎵¹ | 🎵² . \n      chunks of three tokens; the note's bytes lie in both
spans       (0, 11)              (10, 12)        so both hold the note; a template's characters are in none
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# C chunks of a passage, T tokens of it


@dataclass(frozen=True, eq=False)
class PassageTokens:
    """A passage as tokens: their ids, INT (T,), and the span of each chunk of them, INT32 (C, 2)."""

    token_ids: Sequence[int] | np.ndarray
    spans: np.ndarray


NO_TOKENS = PassageTokens((), np.zeros((0, 2), np.int32))


def find_spans(offsets: Sequence[tuple[int, int]], chunk_size: int, shift: int, num_characters: int) -> np.ndarray:
    """Return the first character of each chunk and the one behind its last.  T offsets -> INT32 (C, 2)

    offsets: characters of each token in the passage's template. shift: characters of the template in front of the
    passage. num_characters: of the passage.
    """
    if not offsets:
        return NO_TOKENS.spans
    starts, ends = np.array(offsets, np.int32).T
    firsts = np.arange(0, len(offsets), chunk_size)
    spans = np.stack([np.minimum.reduceat(starts, firsts), np.maximum.reduceat(ends, firsts)], 1)
    inside: np.ndarray = np.clip(spans - shift, 0, num_characters)
    return inside
