"""Keeps passages' tokens beside the vectors, so that a passage is tokenised once and not with every request.

    key = fingerprint of the tokenizer, of the text around a passage and of k + digest of the passage
    value = number of tokens, their ids, then first character and end of each chunk, all INT32

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
from refrag.context.spans import PassageTokens
from refrag.store.forms import STORED_TOKEN, split_tokens
from refrag.store.keys import DIGEST_BYTES, FINGERPRINT_BYTES
from refrag.store.store import Store

# Part of the fingerprint: entries of another form belong to nobody, and `refrag store prune` deletes them.
FORM_NUMBER = 2


class StoredTokens:
    """Passages' tokens in a store, with the characters of each chunk."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def find(self, passages: Sequence[str]) -> dict[str, PassageTokens]:
        """Return the tokens by passage; unknown passages are left out."""
        values = zip(passages, self.store.find(digest_texts(passages)), strict=True)
        found = {passage: _open(value) for passage, value in values if value is not None}
        # The form bounds no span by its passage, which only its reader knows.
        return {passage: tokens for passage, tokens in found.items() if tokens.spans.max(initial=0) <= len(passage)}

    def put(self, tokens: Mapping[str, PassageTokens]) -> bool:
        """Store the tokens, and return whether every tier has them now. Passages without tokens are skipped."""
        values = _as_values(tokens)
        return self.store.put(values) if values else True

    def keep(self, tokens: Mapping[str, PassageTokens]) -> None:
        """Queue the tokens to be stored; they are dropped if the queue is full."""
        # Converted to bytes before they wait, since bytes take a tenth of the memory.
        values = _as_values(tokens)
        if values:
            self.store.put_later(lambda: values)


def fingerprint_tokenizer(files: Iterable[Path], template: PromptTemplate, chunk_size: int) -> bytes:
    """Return a 16-byte digest of everything that turns a passage into tokens and these into chunks.

    That is the tokenizer's files, the text around a passage, k, and the versions of the libraries.
    """
    libraries = {name: version(name) for name in ("tokenizers", "transformers")}
    settings = {
        "template": asdict(template),
        "libraries": libraries,
        "chunk_size": chunk_size,
        "form": FORM_NUMBER,
    }
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=FINGERPRINT_BYTES)
    for path in files:
        digest.update(f"\0{path.name}\0".encode())
        digest.update(path.read_bytes())
    return digest.digest()


def digest_texts(texts: Iterable[str]) -> list[bytes]:
    """Return the 16-byte digest of each text."""
    return [hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest() for text in texts]


def _as_values(tokens: Mapping[str, PassageTokens]) -> dict[bytes, bytes]:
    passages = [passage for passage, each in tokens.items() if len(each.token_ids)]
    values = (_to_bytes(tokens[passage]) for passage in passages)
    return dict(zip(digest_texts(passages), values, strict=True))


def _to_bytes(tokens: PassageTokens) -> bytes:
    parts = [len(tokens.token_ids)], tokens.token_ids, tokens.spans.reshape(-1)
    return np.concatenate(parts).astype(STORED_TOKEN).tobytes()


def _open(value: bytes) -> PassageTokens:
    token_ids, spans = split_tokens(np.frombuffer(value, STORED_TOKEN))
    return PassageTokens(token_ids, spans.reshape(-1, 2))
