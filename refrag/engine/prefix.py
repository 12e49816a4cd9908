"""What the blocks of a prompt hold, as keys: equal keys mean equal KV, whoever sent the prompt."""

import hashlib

import numpy as np

from refrag.engine.generation import MixedPrompt


def block_keys(prompt: MixedPrompt, block_size: int, vocab_size: int) -> list[bytes]:
    """One key for each full block: a hash of all token ids and all embedding rows from the start to its end.

    The rows themselves are hashed. The caller's `prompt_table_extra_ids` is only a claim about them, and a false
    one would answer one request from the context of another.
    """
    ids = prompt.input_ids.cpu().numpy().astype("<i8")
    rows = prompt.chunk_embeddings.cpu().float().numpy().astype("<f4")
    is_row = ids >= vocab_size
    # Where a row stands in its own request's table is no part of the content.
    texts = np.where(is_row, vocab_size, ids)
    keys, digest = [], hashlib.blake2b(digest_size=16)
    for stop in range(block_size, len(ids) + 1, block_size):
        block = slice(stop - block_size, stop)
        digest.update(texts[block].tobytes())
        if is_row[block].any():
            digest.update(rows[ids[block][is_row[block]] - vocab_size].tobytes())
        keys.append(digest.digest())
    return keys
