"""What the blocks of a prompt hold, as keys: equal keys mean equal KV, whoever sent the prompt."""

import hashlib

import numpy as np

from refrag.decoders.base import MixedPrompt


def block_keys(prompt: MixedPrompt, block_size: int, vocab_size: int) -> list[bytes]:
    """One key for each full block: a hash of all token ids and all embedding rows from the start to its end.

    The rows themselves are hashed. The caller's `prompt_table_extra_ids` is only a claim about them, and a false
    one would answer one request from the context of another.
    """
    ids = prompt.input_ids.cpu().numpy()
    is_row = ids >= vocab_size
    # Where a row stands in its own request's table is no part of the content.
    texts = np.where(is_row, vocab_size, ids).astype("<i8")
    table = prompt.chunk_embeddings.cpu().float().numpy()
    rows = np.ascontiguousarray(table[ids[is_row] - vocab_size], "<f4")
    num_rows = is_row.cumsum()  # up to each slot, itself among them
    # Twice as fast as blake2b where the CPU has instructions for it.
    keys, digest, start_row = [], hashlib.sha256(), 0
    for stop in range(block_size, len(ids) + 1, block_size):
        stop_row = int(num_rows[stop - 1])
        digest.update(texts[stop - block_size : stop].data)
        digest.update(rows[start_row:stop_row].data)
        keys.append(digest.digest())
        start_row = stop_row
    return keys
