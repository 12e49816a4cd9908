"""Cuts token ids into chunks of k consecutive decoder tokens of one passage; its last chunk may be shorter.

Each passage is cut by itself, never the concatenation. So a chunk's vector depends on nothing but the chunk, and can be
stored and reused next to any other chunks.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, overload

import numpy as np

from refrag.config import RefragConfig
from refrag.context.alignment import Aligner, own_places
from refrag.context.frame import Frame, open_frame
from refrag.context.spans import NO_TOKENS, PassageTokens, find_spans
from refrag.context.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# C chunks, K tokens per chunk

NO_TOKEN = -1
TokenIds = Sequence[int] | np.ndarray


# What a question says that asks nothing.
NULL_QUESTION = "N/A"


@dataclass(frozen=True)
class Chunk:
    """Up to k decoder tokens of passage number `passage`."""

    token_ids: tuple[int, ...]
    passage: int

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, eq=False)
class PackedChunks(Sequence[Chunk]):
    """Chunks as two arrays: the form in which models pass them on, and which is fast for hundreds of chunks at once.

    token_ids: INT32 (C, K), NO_TOKEN after the end of a short chunk. passages: INT32 (C,).
    """

    token_ids: np.ndarray
    passages: np.ndarray

    @classmethod
    def cut(cls, passages: Sequence[TokenIds], chunk_size: int) -> "PackedChunks":
        """Return the chunks of each passage in turn; its last may be shorter, and an empty passage has none."""
        counts = [-(-len(token_ids) // chunk_size) for token_ids in passages]
        packed = np.full(sum(counts) * chunk_size, NO_TOKEN, np.int32)
        start = 0
        for token_ids, count in zip(passages, counts, strict=True):
            packed[start : start + len(token_ids)] = token_ids
            start += count * chunk_size
        return cls(packed.reshape(-1, chunk_size), np.arange(len(counts), dtype=np.int32).repeat(counts))

    @classmethod
    def of(cls, *runs: Iterable[Chunk]) -> "PackedChunks":
        """Return the chunks of all runs in order, as wide as the longest chunk or the widest packed run."""
        packed = [run if isinstance(run, PackedChunks) else _pack(list(run)) for run in runs]
        if len(packed) == 1:
            return packed[0]
        width = max((run.token_ids.shape[1] for run in packed), default=0)
        token_ids = np.full((sum(map(len, packed)), width), NO_TOKEN, np.int32)
        start = 0
        for run in packed:
            token_ids[start : start + len(run), : run.token_ids.shape[1]] = run.token_ids
            start += len(run)
        return cls(token_ids, np.concatenate([run.passages for run in packed] or [np.zeros(0, np.int32)]))

    @cached_property
    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each chunk.  (C,)"""
        lengths: np.ndarray = (self.token_ids != NO_TOKEN).sum(1)
        return lengths

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())

    def __len__(self) -> int:
        return len(self.token_ids)

    def __iter__(self) -> Iterator[Chunk]:
        rows = zip(self.token_ids.tolist(), self.lengths.tolist(), self.passages.tolist(), strict=True)
        return (Chunk(tuple(row[:length]), passage) for row, length, passage in rows)

    @overload
    def __getitem__(self, index: int) -> Chunk: ...

    @overload
    def __getitem__(self, index: slice | list[int] | np.ndarray) -> "PackedChunks": ...

    def __getitem__(self, index: int | slice | list[int] | np.ndarray) -> "Chunk | PackedChunks":
        if isinstance(index, (slice, list, np.ndarray)):
            return PackedChunks(self.token_ids[index], self.passages[index])
        return Chunk(tuple(self.token_ids[index, : self.lengths[index]].tolist()), int(self.passages[index]))


def _pack(chunks: Sequence[Chunk]) -> PackedChunks:
    width = max(map(len, chunks), default=0)
    rows = [chunk.token_ids + (NO_TOKEN,) * (width - len(chunk)) for chunk in chunks]
    passages = np.array([chunk.passage for chunk in chunks], np.int32)
    return PackedChunks(np.array(rows, np.int32).reshape(len(chunks), width), passages)


class TokenCache(Protocol):
    """A store of the tokens of passages that were read before."""

    def find(self, passages: Sequence[str]) -> Mapping[str, PassageTokens]:
        """Return the tokens of those passages that the cache knows."""


@dataclass(frozen=True, eq=False)
class ReadPassages:
    """Passages as chunks.

    spans: characters of each chunk in its passage, INT32 (C, 2). new_tokens: tokens of the passages that the chunker's
    cache did not know.
    """

    chunks: PackedChunks
    spans: np.ndarray
    new_tokens: dict[str, PassageTokens]


class Chunker:
    """Turns passages and questions into chunks, and chunks into the encoder's input.

    frame: tokens around what a request brings. encoder_tokenizer: None if the encoder reads the decoder's tokens.
    cache: None to tokenise passages every time.
    """

    def __init__(
        self,
        config: RefragConfig,
        frame: Frame,
        decoder_tokenizer: TextTokenizer,
        encoder_tokenizer: TextTokenizer | None = None,
        cache: TokenCache | None = None,
    ) -> None:
        self.config = config
        self.frame = frame
        self.decoder_tokenizer = decoder_tokenizer
        self.encoder_tokenizer = encoder_tokenizer
        self.cache = cache

    @classmethod
    def of(
        cls,
        config: RefragConfig,
        decoder_tokenizer: "PreTrainedTokenizerFast",
        encoder_tokenizer: "PreTrainedTokenizerFast | None" = None,
        cache: TokenCache | None = None,
    ) -> "Chunker":
        """Return a chunker with transformers' tokenizers, whose chat template gives the frame."""
        own = None if encoder_tokenizer is None else TextTokenizer.of(encoder_tokenizer)
        frame = open_frame(config.template, decoder_tokenizer)
        return cls(config, frame, TextTokenizer.of(decoder_tokenizer), own, cache)

    def context_chunks(self, passages: Sequence[str]) -> PackedChunks:
        """Return the chunks of all passages in order. An empty passage has none."""
        return self.read_passages(passages).chunks

    def read_passages(self, passages: Sequence[str]) -> ReadPassages:
        """Return the chunks of all passages in order; the cache tells the tokens of those that it knows."""
        known, new = self._find_tokens({passage: None for passage in passages if passage})
        tokens = [known.get(passage) or new.get(passage, NO_TOKENS) for passage in passages]
        chunks = PackedChunks.cut([each.token_ids for each in tokens], self.config.chunk_size)
        return ReadPassages(chunks, np.concatenate([NO_TOKENS.spans, *(each.spans for each in tokens)]), new)

    def tokenise(self, passages: Sequence[str]) -> list[PassageTokens]:
        """Return the tokens of each passage inside its template, with the characters of each chunk."""
        prefix, suffix = self.config.template.passage_prefix, self.config.template.passage_suffix
        texts = [prefix + passage + suffix for passage in passages]
        read = self.decoder_tokenizer.encode_with_offsets(texts, special_tokens=False) if texts else []
        size, shift = self.config.chunk_size, len(prefix)
        return [
            PassageTokens(encoding.ids, find_spans(encoding.offsets, size, shift, len(passage)))
            for passage, encoding in zip(passages, read, strict=True)
        ]

    def passages_ids(self, passages: Sequence[str]) -> list[list[int]]:
        """Return the decoder tokens of each passage inside its template; none for an empty passage."""
        prefix, suffix = self.config.template.passage_prefix, self.config.template.passage_suffix
        texts = [prefix + passage + suffix for passage in passages if passage]
        # One call for all, which the tokenizer spreads over the cores.
        token_ids = iter(self.decoder_tokenizer.encode(texts) if texts else ())
        return [next(token_ids) if passage else [] for passage in passages]

    def passage_ids(self, passage: str) -> list[int]:
        return self.passages_ids([passage])[0]

    def question_ids(self, question: str) -> list[int]:
        """Return the decoder tokens of everything after the context: the question inside its template."""
        return self.bare_question_ids(question) + self.frame.tail_ids

    def bare_question_ids(self, question: str) -> list[int]:
        """Return the decoder tokens of the question inside its template, without those of the frame."""
        template = self.config.template
        [token_ids] = self.decoder_tokenizer.encode([template.question_prefix + question + template.answer_prefix])
        return token_ids

    def num_other_slots(self, question_ids: Sequence[int]) -> int:
        """Return the slots of a prompt besides its context: the frame's, and those of the question as it has it."""
        return len(self.frame.head_ids) + len(question_ids)

    def question_chunks(self, question: str) -> PackedChunks:
        """Return the chunks of what a question-aware policy compares with those of the context, in no template."""
        token_ids = self.decoder_tokenizer.encode([self.config.template.passage_prefix + question])
        return PackedChunks.cut(token_ids, self.config.chunk_size)

    def answer_ids(self, answer: str) -> list[int]:
        """Return the decoder tokens of an answer, as it is trained to follow the question, with EOS."""
        # The question's template ends with a word; a chat template ends with a line of its own.
        text = answer if self.config.template.is_chat else f" {answer}"
        [token_ids], eos_id = self.decoder_tokenizer.encode([text]), self.decoder_tokenizer.eos_id
        return [*token_ids, *([] if eos_id is None else [eos_id])]

    def encoder_inputs(self, chunks: Sequence[Chunk]) -> tuple[np.ndarray, np.ndarray]:
        """Return the encoder's padded ids and attention mask for the chunks, both INT64 (C, encoder_length).

        For an encoder with its own tokenizer, each chunk's text is tokenised again and cut off at encoder_length. For
        ordered pooling the mask tells the place of each token, as `refrag.context.alignment` says; else it is 1.
        """
        read, places = self._as_encoder_reads(chunks)
        rows = PackedChunks.of(read).token_ids[:, : self.config.encoder_length]
        is_token, tokenizer = rows != NO_TOKEN, self.encoder_tokenizer or self.decoder_tokenizer
        ids = np.full((len(chunks), self.config.encoder_length), tokenizer.pad_id or 0, np.int64)
        mask = np.zeros_like(ids)
        np.copyto(ids[:, : rows.shape[1]], rows, where=is_token)
        mask[:, : rows.shape[1]] = is_token if places is None else places[:, : rows.shape[1]]
        return ids, mask

    def _find_tokens(self, passages: Collection[str]) -> tuple[Mapping[str, PassageTokens], dict[str, PassageTokens]]:
        """Return the tokens of the passages that the cache knows, and those of the others."""
        known = {} if self.cache is None else self.cache.find(list(passages))
        new = [passage for passage in passages if passage not in known]
        return known, dict(zip(new, self.tokenise(new), strict=True))

    def _as_encoder_reads(self, chunks: Sequence[Chunk]) -> tuple[Sequence[Chunk], np.ndarray | None]:
        """Return the chunks in the encoder's tokens and, for ordered pooling, the places of these.  (C, L)"""
        is_ordered = self.config.pooling == "ordered"
        if self.encoder_tokenizer is None or not chunks:
            return chunks, own_places(PackedChunks.of(chunks).token_ids != NO_TOKEN) if is_ordered else None
        texts = self.decoder_tokenizer.decode([chunk.token_ids for chunk in chunks])
        # Special tokens are added, as the encoder was pre-trained with them.
        read = self.encoder_tokenizer.encode_with_offsets(texts, special_tokens=True)
        rows = [Chunk(tuple(encoding.ids), chunk.passage) for encoding, chunk in zip(read, chunks, strict=True)]
        if not is_ordered:
            return rows, None
        offsets = [encoding.offsets for encoding in read]
        return rows, self._aligner.places([chunk.token_ids for chunk in chunks], texts, offsets)

    @cached_property
    def _aligner(self) -> Aligner:
        return Aligner(self.decoder_tokenizer)


def null_question_ids(config: RefragConfig, decoder_tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """Return the decoder tokens of a question that asks nothing, inside the template."""
    return Chunker.of(config, decoder_tokenizer).question_ids(NULL_QUESTION)
