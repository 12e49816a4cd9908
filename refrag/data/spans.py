"""Finds the chunks of a passage that hold a stretch of its text."""

from functools import lru_cache

import numpy as np

from refrag.context.chunking import Chunker

# T tokens of a passage

# Passages whose tokens are kept: the distractors of questions over one subject come again and again.
NUM_KEPT = 20_000


class Spans:
    """Passages as the chunker cuts them, with the characters of each token."""

    def __init__(self, chunker: Chunker) -> None:
        self.chunker = chunker
        self._encode = lru_cache(NUM_KEPT)(self._encode_anew)

    def token_ids(self, text: str) -> list[int]:
        """Return the passage in its template, as Chunker.passage_ids has it."""
        return self._encode(text)[0]

    def covered_chunks(self, text: str, start: int, stop: int) -> list[int]:
        """Return the numbers, within its passage, of the chunks that share one of the characters [start, stop)."""
        shift = len(self.chunker.config.template.passage_prefix)
        left, right = self._encode(text)[1].T
        covered = np.flatnonzero((left < stop + shift) & (right > start + shift))
        return sorted(set((covered // self.chunker.config.chunk_size).tolist()))

    def _encode_anew(self, text: str) -> tuple[list[int], np.ndarray]:
        """Return the token ids, and the characters of each token.  INT (T, 2)"""
        template = self.chunker.config.template
        passage = template.passage_prefix + text + template.passage_suffix
        [encoded] = self.chunker.decoder_tokenizer.encode_with_offsets([passage], special_tokens=False)
        return encoded.ids, np.array(encoded.offsets, np.int32).reshape(-1, 2)
