"""Lays out the earlier turns of a conversation: the newest as text, older ones as chunks behind those of the passages.

    plain      ^ passages  old pairs  new pairs  question answer_prefix
    chat       system … user\n passages  old pairs  question₁ … assistant\n answer₁ … user\n question … assistant\n

A pair is a user's turn with its answer. As a chunk it may be compressed or expanded like any other. Without a chat
template an expanded pair and one in text are the same tokens, which is how the checkpoint was trained.

What the window cannot hold even compressed is cut, the oldest pair first. Pairs leave the text some at a time, so that
most prompts of a conversation begin like the one before.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from refrag.config import PromptTemplate
from refrag.context.chunking import Chunker, PackedChunks, ReadPassages
from refrag.history import ASSISTANT, USER, Pair

DEFAULT_TEXT_TOKENS = 256


@dataclass(frozen=True)
class Room:
    """Limits of the earlier turns.

    num_slots: of the prompt, besides passages, question and frame. num_chunks: of the encoder's, besides the same.
    text_tokens: tokens of the newest turns that stay text at most. is_plain: whether all chunks are to be expanded.
    """

    num_slots: int
    num_chunks: int = 2**31
    text_tokens: int = DEFAULT_TEXT_TOKENS
    is_plain: bool = False


@dataclass(frozen=True)
class LaidOutHistory:
    """Earlier turns as the prompt has them.

    read: the older pairs as passages, numbered from 0, oldest first. text_ids: tokens of the newest pairs.
    num_cut: number of the oldest pairs, which are left out.
    """

    read: ReadPassages
    text_ids: list[int]
    num_cut: int


def lay_out_history(pairs: Sequence[Pair], chunker: Chunker, room: Room) -> LaidOutHistory:
    """Return the layout of the pairs, which are given oldest first."""
    read = chunker.read_passages([as_passage(pair, chunker.config.template) for pair in pairs])
    texts: list[list[int]] = []  # the newest first
    for token_ids in _newest_first(pairs, chunker):
        if sum(map(len, texts)) + len(token_ids) > min(room.text_tokens, room.num_slots):
            break
        texts.append(token_ids)
    sizes = np.bincount(read.chunks.passages, read.chunks.lengths, len(pairs))
    num_older = _begin_text(len(pairs) - len(texts), sizes, room.text_tokens)
    text_ids = [*chain.from_iterable(reversed(texts[: len(pairs) - num_older]))]
    end = int(np.searchsorted(read.chunks.passages, num_older))
    num_cut = num_older - _count_fitting(read.chunks[:end], num_older, len(text_ids), room)
    first = int(np.searchsorted(read.chunks.passages, num_cut))
    kept = PackedChunks(read.chunks.token_ids[first:end], read.chunks.passages[first:end] - num_cut)
    return LaidOutHistory(ReadPassages(kept, read.spans[first:end], read.new_tokens), text_ids, num_cut)


def as_passage(pair: Pair, template: PromptTemplate) -> str:
    """Return the pair as a passage of the context, in the form in which checkpoints are trained and evaluated."""
    if template.is_chat:
        return f"{USER}: {pair.question}\n{ASSISTANT}: {pair.answer}"
    return f"{template.question_prefix.strip()} {pair.question} {template.answer_prefix.strip()} {pair.answer}"


def policy_question(
    question: str, pairs: Sequence[Pair], chunker: Chunker, text_tokens: int = DEFAULT_TEXT_TOKENS
) -> str:
    """Return what policies read of a question: behind the newest pair, which often tells what it is about.

    The question alone where both have more than `text_tokens` tokens: it would be lost among them.
    """
    if not pairs:
        return question
    template = chunker.config.template
    newest = as_passage(pairs[-1], template)
    whole = f"{newest}\n{USER}: {question}" if template.is_chat else f"{newest} {question}"
    return whole if chunker.question_chunks(whole).num_tokens <= text_tokens else question


def _begin_text(first: int, sizes: np.ndarray, text_tokens: int) -> int:
    """Return the number of the pair with which the text begins; from `first` on all would fit.

    It begins where another half of `text_tokens` is full, counted from the oldest pair. So it begins with the same pair
    for several questions in a row, and their prompts begin alike, which the decoder need not compute again.

    sizes (P,): tokens of each pair.
    """
    num_halves = np.concatenate([[0], sizes.cumsum()]) // max(1, text_tokens // 2)  # full before each pair
    places = np.flatnonzero(np.diff(num_halves[:-1], prepend=-1))
    later = places[places >= first]
    return int(later[0]) if len(later) else first


def _newest_first(pairs: Sequence[Pair], chunker: Chunker) -> Iterator[list[int]]:
    """Yield the tokens of each pair as the prompt has it in text, in front of the question."""
    for pair in reversed(pairs):
        if chunker.frame.answer_ids is None or chunker.frame.question_ids is None:
            yield chunker.passage_ids(as_passage(pair, chunker.config.template))
        else:
            [answer_ids] = chunker.decoder_tokenizer.encode([pair.answer])
            question_ids = chunker.bare_question_ids(pair.question)
            yield [*question_ids, *chunker.frame.answer_ids, *answer_ids, *chunker.frame.question_ids]


def _count_fitting(chunks: PackedChunks, num_pairs: int, text_slots: int, room: Room) -> int:
    """Return how many of the newest pairs fit as chunks."""
    num_chunks = np.bincount(chunks.passages, minlength=num_pairs)[::-1].cumsum()  # of the newest pair, of two, …
    num_tokens = np.bincount(chunks.passages, chunks.lengths, num_pairs)[::-1].cumsum()
    num_slots = text_slots + (num_tokens if room.is_plain else num_chunks)
    return int(((num_slots <= room.num_slots) & (num_chunks <= room.num_chunks)).sum())
