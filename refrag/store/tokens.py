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
    """Of a passage that it does not know it says nothing."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def find(self, passages: Sequence[str]) -> dict[str, np.ndarray]:
        """Token ids, INT32, of those passages that it knows."""
        values = zip(passages, self.store.find(digest_texts(passages)), strict=True)
        return {passage: np.frombuffer(value, STORED_TYPE) for passage, value in values if value is not None}

    def put(self, token_ids: Mapping[str, Sequence[int]]) -> bool:
        """Store them, and return whether every tier has them now; those of an empty passage are not worth it."""
        values = _as_values(token_ids)
        return self.store.put(values) if values else True

    def keep(self, token_ids: Mapping[str, Sequence[int]]) -> None:
        """The same when there is time; if there is none for too long, let them be."""
        # As bytes already, which take a tenth of the memory while they wait.
        values = _as_values(token_ids)
        if values:
            self.store.put_later(lambda: values)


def fingerprint_tokenizer(files: Iterable[Path], template: PromptTemplate) -> bytes:
    """Of everything that turns a passage into tokens."""
    libraries = {name: version(name) for name in ("tokenizers", "transformers")}
    settings = {"template": asdict(template), "libraries": libraries}
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=FINGERPRINT_BYTES)
    for path in files:
        digest.update(f"\0{path.name}\0".encode())
        digest.update(path.read_bytes())
    return digest.digest()


def digest_texts(texts: Iterable[str]) -> list[bytes]:
    return [hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest() for text in texts]


def _as_values(token_ids: Mapping[str, Sequence[int]]) -> dict[bytes, bytes]:
    passages = [passage for passage, ids in token_ids.items() if ids]
    values = (np.array(token_ids[passage], STORED_TYPE).tobytes() for passage in passages)
    return dict(zip(digest_texts(passages), values, strict=True))
