"""Token ids → chunks: k consecutive decoder tokens of one passage, the last one possibly shorter.

Each passage is cut by itself (never the concatenation), so that a chunk's vector depends on nothing but the
chunk and can be stored and reused under any neighbours.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from transformers import PreTrainedTokenizerFast

from refrag.config import RefragConfig

# C chunks, K tokens per chunk

NO_TOKEN = -1


@dataclass(frozen=True)
class Chunk:
    """Up to k decoder tokens of passage number `passage`."""

    token_ids: tuple[int, ...]
    passage: int

    def __len__(self) -> int:
        return len(self.token_ids)


def cut_into_chunks(token_ids: Sequence[int], chunk_size: int, passage: int = 0) -> list[Chunk]:
    """Consecutive chunks of `chunk_size` tokens; the last may be shorter, and an empty passage has none."""
    starts = range(0, len(token_ids), chunk_size)
    return [Chunk(tuple(token_ids[start : start + chunk_size]), passage) for start in starts]


def pack_chunks(chunks: list[Chunk], chunk_size: int) -> np.ndarray:
    """Token ids INT32 (C, K), NO_TOKEN after the end of a short chunk."""
    rows = [chunk.token_ids + (NO_TOKEN,) * (chunk_size - len(chunk)) for chunk in chunks]
    return np.array(rows, np.int32).reshape(len(chunks), chunk_size)


def unpack_chunks(token_ids: np.ndarray, passages: np.ndarray) -> list[Chunk]:
    """The inverse of pack_chunks, with the passage of each chunk."""
    lengths = (token_ids != NO_TOKEN).sum(1).tolist()
    rows = zip(token_ids.tolist(), lengths, passages.tolist(), strict=True)
    return [Chunk(tuple(row[:length]), passage) for row, length, passage in rows]


class TokenCache(Protocol):
    """Knows the tokens of passages that were asked about before."""

    def find(self, passages: Sequence[str]) -> dict[str, list[int]]:
        """Token ids of those passages that it knows."""


class Chunker:
    """Turns passages and questions into chunks, and chunks into what the encoder reads.

    cache: by default passages are tokenised each time.
    """

    def __init__(
        self,
        config: RefragConfig,
        decoder_tokenizer: PreTrainedTokenizerFast,
        encoder_tokenizer: PreTrainedTokenizerFast | None = None,
        cache: TokenCache | None = None,
    ) -> None:
        self.config = config
        self.cache = cache
        self.decoder_tokenizer = decoder_tokenizer
        self.encoder_tokenizer = encoder_tokenizer

    def context_chunks(self, passages: Sequence[str]) -> list[Chunk]:
        """Chunks of all passages in order. An empty passage has none."""
        return self.read_passages(passages)[0]

    def read_passages(self, passages: Sequence[str]) -> tuple[list[Chunk], dict[str, list[int]]]:
        """Chunks of all passages in order; and the tokens of those that the cache does not know, for it to keep."""
        token_ids, new = self._token_ids({passage: None for passage in passages if passage})
        chunks = [
            chunk
            for number, passage in enumerate(passages)
            for chunk in cut_into_chunks(token_ids.get(passage, ()), self.config.chunk_size, number)
        ]
        return chunks, new

    def passages_ids(self, passages: Sequence[str]) -> list[list[int]]:
        """Decoder tokens of each passage inside its template; none at all for an empty passage."""
        prefix, suffix = self.config.template.passage_prefix, self.config.template.passage_suffix
        texts = [prefix + passage + suffix for passage in passages if passage]
        # All in one call, which the tokenizer spreads over the cores.
        token_ids = iter(self._tokenise(texts) if texts else ())
        return [next(token_ids) if passage else [] for passage in passages]

    def passage_ids(self, passage: str) -> list[int]:
        return self.passages_ids([passage])[0]

    def question_ids(self, question: str) -> list[int]:
        """Decoder tokens of everything after the context: the question inside its template."""
        template = self.config.template
        return self._tokenise([template.question_prefix + question + template.answer_prefix])[0]

    def question_chunks(self, question: str) -> list[Chunk]:
        """The bare question, cut for the encoder: what a question-aware policy compares the context with."""
        [token_ids] = self._tokenise([self.config.template.passage_prefix + question])
        return cut_into_chunks(token_ids, self.config.chunk_size)

    def encoder_inputs(self, chunks: Sequence[Chunk]) -> tuple[np.ndarray, np.ndarray]:
        """Padded encoder ids and attention mask of the chunks, both INT64 (C, encoder_length).

        An encoder with its own tokenizer gets each chunk's text tokenised anew, cut off at encoder_length.
        """
        width = self.config.encoder_length
        rows = [token_ids[:width] for token_ids in self._encoder_ids(chunks)]
        tokenizer = self.encoder_tokenizer or self.decoder_tokenizer
        ids = np.full((len(rows), width), tokenizer.pad_token_id or 0, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for row, token_ids in enumerate(rows):
            ids[row, : len(token_ids)] = token_ids
            mask[row, : len(token_ids)] = 1
        return ids, mask

    def _token_ids(self, passages: Collection[str]) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """Of each passage, and of those that were tokenised for it, all together: the cache does not know them."""
        known = {} if self.cache is None else self.cache.find(list(passages))
        new = [passage for passage in passages if passage not in known]
        tokenised = dict(zip(new, self.passages_ids(new), strict=True))
        return {**known, **tokenised}, tokenised

    def _encoder_ids(self, chunks: Sequence[Chunk]) -> list[Sequence[int]]:
        if self.encoder_tokenizer is None or not chunks:
            return [chunk.token_ids for chunk in chunks]
        texts = [self.decoder_tokenizer.decode(list(chunk.token_ids)) for chunk in chunks]
        # Special tokens are added, as the encoder was pre-trained with them.
        return self.encoder_tokenizer(texts, split_special_tokens=True).input_ids

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        # Not by the tokenizer itself, which spends a third of the time on masks and offsets that nobody reads.
        backend = self.decoder_tokenizer.backend_tokenizer
        # Callers' text may spell a special token; it stays text, or a passage could end the prompt.
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
