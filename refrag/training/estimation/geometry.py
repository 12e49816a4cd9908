"""The shapes of the batches that a run draws, from its settings alone: its memory and its time follow from them.

Stages of text are exact. Stages of questions draw passages of all lengths; theirs are taken at the usual ones, which
`stages/questions.py` names.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from refrag.policies.budget import expansion_budget
from refrag.training.curriculum import batch_shares, passage_counts
from refrag.training.settings import AnyRun, Continue, Finetune, Pair, Policy, Pretrain, Reconstruct
from refrag.training.stages import continuation, reconstruct
from refrag.training.stages.finetune import DENSE_SHARE, continuation_settings
from refrag.training.stages.pretrain import RECITAL_TOKENS, pretraining_counts
from refrag.training.stages.questions import QUESTIONS_PER_CONTEXT, TOKENS_PER_PASSAGE, TOKENS_PER_QUESTION

TextRun = TypeVar("TextRun", Reconstruct, Continue)

# The begin-of-sequence token, which not every decoder has.
BOS_SLOTS = 1
# An encoder with its own tokenizer puts a token before and one behind each chunk.
SPECIAL_TOKENS = 2
# What grows with progress is averaged over so many moments of the run.
NUM_MOMENTS = 40


@dataclass(frozen=True)
class Geometry:
    """One kind of batch on one process.

    share: of the run's batches. rows, slots: of the decoder's input. num_predicted: slots with something to predict.
    num_chunks, chunk_tokens: what the encoder reads, the question's chunks with it.
    """

    share: float
    rows: int
    slots: int
    num_predicted: int
    num_chunks: int = 0
    chunk_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """Slots of the decoder and tokens of the encoder together."""
        return self.rows * self.slots + self.num_chunks * self.chunk_tokens


def geometries(pair: Pair, run: AnyRun) -> list[Geometry]:
    """Every kind of batch that the run draws; their shares add up to one."""
    return list(GEOMETRIES[type(run)](pair, run))


def replay_geometries(pair: Pair, run: AnyRun) -> list[Geometry]:
    """Every kind of batch that goes with some of those; their shares add up to that of the steps that have one."""
    if not isinstance(run, Finetune) or run.replay is None:
        return []
    batches = _continue(pair, continuation_settings(run, run.replay))
    return [replace(batch, share=batch.share * run.replay.share) for batch in batches]


def _pretrain(pair: Pair, run: Pretrain) -> Iterator[Geometry]:
    rows = max(1, run.tokens_per_step // (2 * RECITAL_TOKENS))
    yield Geometry(run.recital_share, rows, BOS_SLOTS + 2 * RECITAL_TOKENS, rows * RECITAL_TOKENS)
    rest = 1 - run.recital_share
    rows = max(1, run.tokens_per_step // run.window_tokens)
    yield Geometry(rest * run.text_share, rows, BOS_SLOTS + run.window_tokens, rows * run.window_tokens)
    for share, num_passages in _passage_shares(functools.partial(pretraining_counts, run)):
        length, rows = _plain_context(num_passages, run.tokens_per_step)
        yield Geometry(rest * (1 - run.text_share) * share, rows, BOS_SLOTS + length, rows * length)


def _reconstruct(pair: Pair, run: Reconstruct) -> Iterator[Geometry]:
    for share, num_chunks, chunk_size, rows in _text_contexts(pair, run, reconstruct.num_windows):
        length = num_chunks * chunk_size
        slots = BOS_SLOTS + num_chunks + length
        yield Geometry(share, rows, slots, rows * length, rows * num_chunks, _encoder_tokens(pair, chunk_size))


def _continue(pair: Pair, run: Continue) -> Iterator[Geometry]:
    fractions = [1.0] if run.form == "plain" else run.expand_fractions
    for context_share, num_chunks, chunk_size, rows in _text_contexts(pair, run, continuation.num_windows):
        for fraction in fractions:
            share, num_expanded = context_share / len(fractions), expansion_budget(fraction, num_chunks)
            slots = BOS_SLOTS + _context_slots(num_chunks, num_expanded, chunk_size) + run.continuation_tokens
            num_encoded = 0 if num_expanded == num_chunks else rows * num_chunks
            predicted = rows * run.continuation_tokens
            yield Geometry(share, rows, slots, predicted, num_encoded, _encoder_tokens(pair, chunk_size))


def _finetune(pair: Pair, run: Finetune) -> Iterator[Geometry]:
    """Plain; dense, with all questions behind one context; and as served, each question a sequence of its own."""
    plain_share = 1.0 if run.form == "plain" else run.plain_share
    dense_share = (1 - plain_share) * DENSE_SHARE
    num_sizes, num_fractions = len(pair.trained_chunk_sizes), len(run.expand_fractions)
    questions = QUESTIONS_PER_CONTEXT * TOKENS_PER_QUESTION
    for share, num_passages in _passage_shares(functools.partial(passage_counts, run.max_passages)):
        length, rows = _plain_context(num_passages, run.tokens_per_step)
        for size in pair.trained_chunk_sizes:
            encoded = (0, 0) if run.form == "plain" else _encoded(pair, rows, num_passages, QUESTIONS_PER_CONTEXT, size)
            each, num_chunks = share / num_sizes, _num_chunks(num_passages, size)
            yield Geometry(each * plain_share, rows, BOS_SLOTS + length, rows * questions, *encoded)
            for fraction in run.expand_fractions if plain_share < 1 else []:
                context = BOS_SLOTS + _context_slots(num_chunks, expansion_budget(fraction, num_chunks), size)
                one = each / num_fractions
                yield Geometry(one * dense_share, rows, context + questions, rows * questions, *encoded)
                served = one * (1 - plain_share - dense_share), rows * QUESTIONS_PER_CONTEXT
                yield Geometry(*served, context + TOKENS_PER_QUESTION, rows * questions, *encoded)


def _policy(pair: Pair, run: Policy) -> Iterator[Geometry]:
    passages = range(2, run.max_passages + 1)
    kinds = [(n, k, f) for n in passages for k in pair.trained_chunk_sizes for f in run.expand_fractions]
    for num_passages, size, fraction in kinds:
        num_chunks = _num_chunks(num_passages, size)
        budget = expansion_budget(max(run.expand_fractions), num_chunks)
        num_questions = math.ceil(run.tokens_per_step / (run.group_size * (num_chunks + budget * size)))
        slots = BOS_SLOTS + _context_slots(num_chunks, expansion_budget(fraction, num_chunks), size)
        rows, encoded = num_questions * run.group_size, _encoded(pair, num_questions, num_passages, 1, size)
        predicted = rows * TOKENS_PER_QUESTION
        yield Geometry(1 / len(kinds), rows, slots + TOKENS_PER_QUESTION, predicted, *encoded)


GEOMETRIES: dict[type, Callable[[Pair, Any], Iterator[Geometry]]] = {
    Pretrain: _pretrain,
    Reconstruct: _reconstruct,
    Continue: _continue,
    Finetune: _finetune,
    Policy: _policy,
}


def _text_contexts(
    pair: Pair, run: TextRun, num_windows: Callable[[TextRun, int, int], int]
) -> Iterator[tuple[float, int, int, int]]:
    """Share of the batches, number of chunks, their size, and how many windows of them make a batch."""
    for size in pair.trained_chunk_sizes:
        samples_per_batch = functools.partial(num_windows, run, size)
        shares = batch_shares(run.curriculum, samples_per_batch)
        for share, num_chunks in zip(shares, run.curriculum.num_chunks, strict=True):
            yield share / len(pair.trained_chunk_sizes), num_chunks, size, samples_per_batch(num_chunks)


def _passage_shares(counts: Callable[[float], range]) -> Iterator[tuple[float, int]]:
    """Share of the batches that have each number of passages; counts: those that are drawn from at a progress."""
    moments = [counts((moment + 0.5) / NUM_MOMENTS) for moment in range(NUM_MOMENTS)]
    for number in range(1, max(map(max, moments)) + 1):
        if share := sum(1 / len(each) for each in moments if number in each) / NUM_MOMENTS:
            yield share, number


def _plain_context(num_passages: int, tokens_per_step: int) -> tuple[int, int]:
    """Tokens of a context with its questions, and how many contexts `draw_contexts` draws."""
    length = num_passages * TOKENS_PER_PASSAGE + QUESTIONS_PER_CONTEXT * TOKENS_PER_QUESTION
    return length, max(2, tokens_per_step // length)


def _context_slots(num_chunks: int, num_expanded: int, chunk_size: int) -> int:
    return num_chunks - num_expanded + num_expanded * chunk_size


def _num_chunks(num_passages: int, chunk_size: int) -> int:
    return num_passages * math.ceil(TOKENS_PER_PASSAGE / chunk_size)


def _encoded(pair: Pair, num_contexts: int, num_passages: int, num_questions: int, chunk_size: int) -> tuple[int, int]:
    """Number of chunks of contexts and questions, and the encoder's tokens in each."""
    num_question_chunks = num_questions * math.ceil(TOKENS_PER_QUESTION / chunk_size)
    num_chunks = num_contexts * (_num_chunks(num_passages, chunk_size) + num_question_chunks)
    return num_chunks, _encoder_tokens(pair, chunk_size)


def _encoder_tokens(pair: Pair, chunk_size: int) -> int:
    """An encoder's own tokenizer cuts text into about as many tokens as the decoder's."""
    return chunk_size if pair.encoder.pretrained is None else chunk_size + SPECIAL_TOKENS
