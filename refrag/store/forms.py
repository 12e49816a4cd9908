"""Forms that the values of one fingerprint have. A value of another form is damaged, even if its checksum is right.

Whoever can write to a tier can write a checksum too: another release, another program, or somebody who means harm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

# C chunks, E encoder width

STORED_VECTOR, STORED_TOKEN = np.dtype("<f2"), np.dtype("<i4")
# All ones in NaN and infinity alone.
FP16_EXPONENT = np.uint16(0x7C00)


class Form(Protocol):
    """A form that values must have."""

    def fit(self, values: Sequence[bytes]) -> list[bool]:
        """Return of each value whether it has this form."""


@dataclass(frozen=True)
class VectorForm:
    """Vectors of one encoder: `width` finite numbers in FP16."""

    width: int

    def fit(self, values: Sequence[bytes]) -> list[bool]:
        num_bytes = self.width * STORED_VECTOR.itemsize
        are_whole = [len(value) == num_bytes for value in values]
        whole = b"".join(value for value in values if len(value) == num_bytes)
        finite = iter(are_finite(np.frombuffer(whole, STORED_VECTOR).reshape(-1, self.width)).tolist())
        return [is_whole and next(finite) for is_whole in are_whole]


@dataclass(frozen=True)
class TokenForm:
    """Tokens of one tokenizer in INT32: how many there are, their ids from 0 to `vocab_size` - 1, then for each chunk
    of `chunk_size` of them its first character and the one behind its last.
    """

    vocab_size: int
    chunk_size: int

    def fit(self, values: Sequence[bytes]) -> list[bool]:
        return [self._fits(value) for value in values]

    def _fits(self, value: bytes) -> bool:
        if not value or len(value) % STORED_TOKEN.itemsize:
            return False
        numbers = np.frombuffer(value, STORED_TOKEN)
        num_tokens = int(numbers[0])
        if num_tokens < 1 or len(numbers) != 1 + num_tokens + 2 * -(-num_tokens // self.chunk_size):
            return False
        token_ids, spans = split_tokens(numbers)
        starts, ends = spans.reshape(-1, 2).T
        are_tokens = token_ids.min() >= 0 and token_ids.max() < self.vocab_size
        return bool(are_tokens and starts.min() >= 0 and (starts <= ends).all())


def split_tokens(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids, and the two numbers of each chunk, of a value in TokenForm."""
    num_tokens = int(numbers[0])
    return numbers[1 : 1 + num_tokens], numbers[1 + num_tokens :]


def are_finite(vectors: np.ndarray) -> np.ndarray:
    """Return which vectors hold neither NaN nor infinity.  FP16 (C, E) -> BOOL (C,)"""
    # numpy converts each FP16 number to look at it, which takes five times as long as looking at its exponent.
    finite: np.ndarray = ((vectors.view(np.uint16) & FP16_EXPONENT) != FP16_EXPONENT).all(-1)
    return finite
