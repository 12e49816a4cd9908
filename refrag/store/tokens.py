"""Keeps passages' token ids beside the vectors, so that a passage is tokenised once and not with every request.

    key = fingerprint of the tokenizer and of the text around a passage + digest of the passage

For contexts long enough to be worth compressing, tokenising would otherwise be a good part of the remaining wait.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np

from refrag.config import PromptTemplate
from refrag.store.forms import STORED_TOKEN
from refrag.store.keys import DIGEST_BYTES, FINGERPRINT_BYTES
from refrag.store.store import Store


class StoredTokens:
    """Passages' token ids in a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def find(self, passages: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the token ids, INT32, by passage; unknown passages are left out."""
        values = zip(passages, self.store.find(digest_texts(passages)), strict=True)
        return {passage: np.frombuffer(value, STORED_TOKEN) for passage, value in values if value is not None}

    def put(self, token_ids: Mapping[str, Sequence[int]]) -> bool:
        """Store the token ids, and return whether every tier has them now. Passages without tokens are skipped."""
        values = _as_values(token_ids)
        return self.store.put(values) if values else True

    def keep(self, token_ids: Mapping[str, Sequence[int]]) -> None:
        """Queue the token ids to be stored; they are dropped if the queue is full."""
        # Converted to bytes before they wait, since bytes take a tenth of the memory.
        values = _as_values(token_ids)
        if values:
            self.store.put_later(lambda: values)


def fingerprint_tokenizer(files: Iterable[Path], template: PromptTemplate) -> bytes:
    """Return a 16-byte digest of everything that turns a passage into tokens.

    That is the tokenizer's files, the text around a passage, and the versions of the libraries.
    """
    libraries = {name: version(name) for name in ("tokenizers", "transformers")}
    settings = {"template": asdict(template), "libraries": libraries}
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=FINGERPRINT_BYTES)
    for path in files:
        digest.update(f"\0{path.name}\0".encode())
        digest.update(path.read_bytes())
    return digest.digest()


def digest_texts(texts: Iterable[str]) -> list[bytes]:
    """Return the 16-byte digest of each text."""
    return [hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest() for text in texts]


def _as_values(token_ids: Mapping[str, Sequence[int]]) -> dict[bytes, bytes]:
    passages = [passage for passage, ids in token_ids.items() if ids]
    values = (np.array(token_ids[passage], STORED_TOKEN).tobytes() for passage in passages)
    return dict(zip(digest_texts(passages), values, strict=True))
