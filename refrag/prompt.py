"""Lays out the decoder's prompt: one slot per compressed chunk, k slots per expanded chunk, then the question.

    question "who?" = q q q; 4 chunks of k=4; chunk 2 expanded

    slot      0 1 2 3 4 5 6 7 8 9
    holds     ^ A B c c c c D q q      ^ begin-of-sequence; A B D a compressed chunk each; c a token of chunk 2
    position  0 1 2 3 4 5 6 7 8 9      a compressed chunk takes one position, not k

A slot that holds a compressed chunk carries a placeholder id: vocab_size + its row in the table of chunk
embeddings. With every chunk expanded there is no placeholder left, and the ids are the plain prompt.
"""

import hashlib
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from refrag.chunking import Chunk


@dataclass(frozen=True)
class Prompt:
    """Everything before the first generated token.

    input_ids: INT32 (S,); an id ≥ vocab_size means row (id − vocab_size) of the chunk embeddings.
    extra_ids: UINT64 (S,); 0 for text, else a hash of the chunk's content, so that KV reuse can tell rows apart.
    compressed: numbers of the chunks that the rows stand for, in order.
    """

    input_ids: np.ndarray
    extra_ids: np.ndarray
    compressed: list[int]

    @property
    def num_slots(self) -> int:
        return len(self.input_ids)


def lay_out_prompt(
    chunks: Sequence[Chunk],
    expanded: Collection[int],
    question_ids: Sequence[int],
    vocab_size: int,
    bos_id: int | None,
) -> Prompt:
    """The mixed prompt of the chunks, those numbered in `expanded` in full, and the question."""
    expanded = set(expanded)
    input_ids: list[int] = [] if bos_id is None else [bos_id]
    extra_ids: list[int] = [0] * len(input_ids)
    compressed: list[int] = []
    for number, chunk in enumerate(chunks):
        if number in expanded:
            input_ids += chunk.token_ids
            extra_ids += [0] * len(chunk)
        else:
            input_ids.append(vocab_size + len(compressed))
            extra_ids.append(content_hash(chunk))
            compressed.append(number)
    input_ids += question_ids
    extra_ids += [0] * len(question_ids)
    return Prompt(np.array(input_ids, np.int32), np.array(extra_ids, np.uint64), compressed)


def content_hash(chunk: Chunk) -> int:
    """A 64-bit hash of the chunk's tokens, never 0 since 0 marks text."""
    digest = hashlib.blake2b(array("q", chunk.token_ids).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1
