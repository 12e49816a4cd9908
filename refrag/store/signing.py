"""Signs what this server's models compute, so that the store keeps nothing else.

    preprocessing      chunk tag  = MAC(digest of the chunk's tokens, encoder's input)
    chunk_encoder      vector tag = MAC(encoder's input, vector)
    expansion_policy   keeps the vector under the digest if both tags fit

A client may call each of these models by itself, see every tag, and send tags again with whatever else it likes. It
gains nothing: a tag fits only what one model really made of the other's output. The key is the server's, new with every
start, and no client sees it.
"""

import hmac
import os
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np

from refrag.errors import SetupError
from refrag.variables import GRAPH_KEY

# N rows

SHORTEST_KEY_BYTES, LONGEST_KEY_BYTES = 16, blake2b.MAX_KEY_SIZE
TAG_TYPE, TAG_LENGTH = np.dtype("<i4"), 4
# Whose rows a tag stands for, so that no tag of one kind passes for another's.
CHUNK, MODEL_OUTPUT = b"chunk", b"model output"


def load_graph_key() -> bytes | None:
    """Return the server's key, or None where nobody has set one; raise SetupError if it is none."""
    text = os.environ.get(GRAPH_KEY) or ""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if text and not SHORTEST_KEY_BYTES <= len(key) <= LONGEST_KEY_BYTES:
        # The text is not shown: it may be a secret all the same.
        raise SetupError(
            f"{GRAPH_KEY} is no key; it must be {2 * SHORTEST_KEY_BYTES} to {2 * LONGEST_KEY_BYTES} hexadecimal "
            "digits, such as `openssl rand -hex 32` prints"
        )
    return key or None


def sign_rows(key: bytes | None, kind: bytes, columns: Sequence[np.ndarray]) -> np.ndarray:
    """Return a tag for each row of the columns, or zeros without a key.  columns (N, …) -> INT32 (N, TAG_LENGTH)"""
    if key is None:
        return unsigned(len(columns[0]))
    return np.frombuffer(b"".join(_tags(key, kind, columns)), TAG_TYPE).reshape(-1, TAG_LENGTH)


def unsigned(num_rows: int) -> np.ndarray:
    return np.zeros((num_rows, TAG_LENGTH), TAG_TYPE)


def are_signed(key: bytes | None, kind: bytes, columns: Sequence[np.ndarray], tags: np.ndarray) -> np.ndarray:
    """Return of each row whether its tag fits; without a key none does.  columns (N, …), tags (N, 4) -> BOOL (N,)"""
    if key is None:
        return np.zeros(len(tags), bool)
    pairs = zip(_tags(key, kind, columns), tags, strict=True)
    return np.array([hmac.compare_digest(expected, tag.tobytes()) for expected, tag in pairs], bool)


def _tags(key: bytes, kind: bytes, columns: Sequence[np.ndarray]) -> Iterator[bytes]:
    num_rows = len(columns[0])
    if num_rows == 0:
        return
    # Sizes come first: the same bytes cut into columns in another way are another row.
    start = blake2b(key=key, person=kind, digest_size=TAG_TYPE.itemsize * TAG_LENGTH)
    start.update(repr([(column.dtype.str, column.shape[1:]) for column in columns]).encode())
    rows = [np.ascontiguousarray(column).reshape(num_rows, -1).view(np.uint8) for column in columns]
    for row in np.concatenate(rows, axis=1):
        tag = start.copy()
        tag.update(row)
        yield tag.digest()
