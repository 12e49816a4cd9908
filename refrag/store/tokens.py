"""Token ids of passages, kept beside the vectors: a passage is tokenised once, and not with every request.

    key = fingerprint of the tokenizer and of the text around a passage + digest of the passage

Of contexts as long as those that compression is for, tokenising would else be a good part of what is left to wait for.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np

from refrag.config import PromptTemplate
from refrag.store.keys import DIGEST_BYTES, FINGERPRINT_BYTES
from refrag.store.store import Store

STORED_TYPE = np.dtype("<i4")


class StoredTokens:
    """What it is told, it keeps when there is time; of a passage that it does not know it says nothing."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def find(self, passages: Sequence[str]) -> dict[str, list[int]]:
        """Token ids of those passages that it knows."""
        values = zip(passages, self.store.find(digest_texts(passages)), strict=True)
        return {passage: np.frombuffer(value, STORED_TYPE).tolist() for passage, value in values if value is not None}

    def keep(self, token_ids: Mapping[str, Sequence[int]]) -> None:
        """An empty passage is not worth it."""
        known = {passage: ids for passage, ids in token_ids.items() if ids}
        if known:
            self.store.put_later(lambda: _as_values(known))


def fingerprint_tokenizer(files: Iterable[Path], template: PromptTemplate) -> bytes:
    """Of everything that turns a passage into tokens."""
    settings = {"template": asdict(template), "tokenizers": version("tokenizers")}
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=FINGERPRINT_BYTES)
    for path in files:
        digest.update(f"\0{path.name}\0".encode())
        digest.update(path.read_bytes())
    return digest.digest()


def digest_texts(texts: Iterable[str]) -> list[bytes]:
    return [hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest() for text in texts]


def _as_values(token_ids: Mapping[str, Sequence[int]]) -> dict[bytes, bytes]:
    values = (np.array(ids, STORED_TYPE).tobytes() for ids in token_ids.values())
    return dict(zip(digest_texts(token_ids), values, strict=True))
