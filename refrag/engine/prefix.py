"""Keys for what the blocks of a prompt hold: equal keys mean equal keys and values, whoever sent the prompt."""

import hashlib

import numpy as np

from refrag.decoders.base import MixedPrompt


def block_keys(prompt: MixedPrompt, block_size: int, vocab_size: int) -> list[bytes]:
    """Return one key for each full block: a hash of all token ids and embedding rows from the start to its end.

    The rows themselves are hashed. The caller's `prompt_table_extra_ids` only claim what the rows are, and a false
    claim would let one request be answered from another's context.
    """
    ids = prompt.input_ids.cpu().numpy()
    is_row = ids >= vocab_size
    # A row's number in its own request's table is not part of the content.
    texts = np.where(is_row, vocab_size, ids).astype("<i8")
    table = prompt.chunk_embeddings.cpu().float().numpy()
    rows = np.ascontiguousarray(table[ids[is_row] - vocab_size], "<f4")
    num_rows = is_row.cumsum()  # up to and including each slot
    # SHA-256 is twice as fast as blake2b where the CPU has instructions for it.
    keys, digest, start_row = [], hashlib.sha256(), 0
    for stop in range(block_size, len(ids) + 1, block_size):
        stop_row = int(num_rows[stop - 1])
        digest.update(texts[stop - block_size : stop].data)
        digest.update(rows[start_row:stop_row].data)
        keys.append(digest.digest())
        start_row = stop_row
    return keys
