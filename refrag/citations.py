"""Tells what an answer rests on: the spans of passages that the decoder read in full, and what the policy weighed.

    passage 0   chunks 0 1 2 3     expanded: 1, 2, 4     cited: passage 0, from chunk 1's first character
    passage 1   chunks 4 5                                      to chunk 2's last; passage 1, all of chunk 4

Earlier turns of the conversation stand behind the passages, have higher numbers, and are never cited.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# C chunks, P passages, X expanded chunks, N cited spans


@dataclass(frozen=True, eq=False)
class Sources:
    """The places that the chunks of a request come from.

    spans: passage, first character and the one behind the last of each chunk, INT32 (C, 3); a number of `num_passages`
    or more is an earlier turn's.
    """

    spans: np.ndarray
    num_passages: int

    def cite(self, expanded: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the cited spans; neighbours of one passage are one.  X numbers, ascending -> INT32 (N, 3)"""
        numbers = np.asarray(expanded, np.int64)
        numbers = numbers[self.spans[numbers, 0] < self.num_passages]
        if not len(numbers):
            return np.zeros((0, 3), np.int32)
        spans = self.spans[numbers]  # (X, 3)
        is_first = np.ones(len(numbers), bool)
        is_first[1:] = (np.diff(numbers) > 1) | (np.diff(spans[:, 0]) > 0)
        is_last = np.append(is_first[1:], True)
        cited = np.stack([spans[is_first, 0], spans[is_first, 1], spans[is_last, 2]], 1).astype(np.int32)
        # A chunk may hold nothing but the template's characters.
        with_text: np.ndarray = cited[cited[:, 1] < cited[:, 2]]
        return with_text

    def share(self, weights: np.ndarray) -> np.ndarray:
        """Return each passage's share of the chunks' weights, all 0 if they are.  FP32 (C,) -> FP32 (P,)"""
        are_cited = self.spans[:, 0] < self.num_passages
        sums = np.bincount(self.spans[are_cited, 0], weights[are_cited], self.num_passages)
        total = sums.sum()
        shares: np.ndarray = (sums / total if total else sums).astype(np.float32)
        return shares


NO_SOURCES = Sources(np.zeros((0, 3), np.int32), 0)


def locate(passages: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Return the chunks' places as `Sources` has them.  (C,), (C, 2) -> INT32 (C, 3)"""
    places: np.ndarray = np.concatenate([passages[:, None], spans], 1).astype(np.int32)
    return places
