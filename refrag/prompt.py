"""Lays out the decoder's prompt: one slot per compressed chunk, k slots per expanded chunk, then the question.

    question "who?" = q q q; 4 chunks of k=4; chunk 2 expanded

    slot      0 1 2 3 4 5 6 7 8 9
    holds     ^ A B c c c c D q q      ^ the head, here begin-of-sequence; A B D a compressed chunk each;
                                       c a token of chunk 2
    position  0 1 2 3 4 5 6 7 8 9      a compressed chunk takes one position, not k

A slot that holds a compressed chunk carries a placeholder id: vocab_size + its row in the table of chunk
embeddings. With every chunk expanded there is no placeholder left, and the ids are the plain prompt.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from refrag.context.chunking import NO_TOKEN, PackedChunks

# C chunks, R of them compressed, S slots

EXTRA_ID = np.dtype("<u8")


@dataclass(frozen=True)
class Prompt:
    """Everything before the first generated token.

    input_ids: INT32 (S,); an id ≥ vocab_size means row (id − vocab_size) of the chunk embeddings.
    compressed: INT64 (R,); number of the chunk that each row stands for.
    """

    input_ids: np.ndarray
    compressed: np.ndarray

    @property
    def num_slots(self) -> int:
        return len(self.input_ids)


def lay_out_prompt(
    chunks: PackedChunks,
    expanded: Collection[int],
    question_ids: Sequence[int],
    vocab_size: int,
    head_ids: Sequence[int],
) -> Prompt:
    """Return the prompt of the chunks and the question.

    expanded: numbers of the chunks that go in in full. head_ids: tokens in front of the context, as
    `refrag.context.frame` has them.
    """
    is_expanded = np.zeros(len(chunks), bool)
    is_expanded[list(expanded)] = True
    compressed = np.flatnonzero(~is_expanded)
    widths = np.where(is_expanded, chunks.lengths, 1)  # (C,)
    starts = widths.cumsum() - widths
    is_row = np.zeros(widths.sum(), bool)
    is_row[starts[compressed]] = True
    context, expanded_tokens = np.empty(len(is_row), np.int32), chunks.token_ids[is_expanded]
    context[is_row] = vocab_size + np.arange(len(compressed))
    context[~is_row] = expanded_tokens[expanded_tokens != NO_TOKEN]
    return Prompt(np.concatenate([head_ids, context, question_ids]).astype(np.int32), compressed)


def table_extra_ids(prompt: Prompt, vocab_size: int, digests: np.ndarray) -> np.ndarray:
    """Return an id for each slot, 0 for a token, else a hash of the chunk.  UINT64 (S,)

    An engine that reuses KV blocks by ids tells rows apart by it.
    digests: UINT8 (C, 8 or more), one for each chunk's tokens; a prompt without rows needs none.
    """
    heads = np.ascontiguousarray(digests[prompt.compressed, : EXTRA_ID.itemsize])
    extra_ids = np.zeros(prompt.num_slots, EXTRA_ID)
    extra_ids[prompt.input_ids >= vocab_size] = np.maximum(heads.view(EXTRA_ID).reshape(-1), 1)
    return extra_ids
