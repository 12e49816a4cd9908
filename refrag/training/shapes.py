"""Lists the shapes of the batches that a run draws, from its settings alone: its memory and its time follow from them.

For stages of text the shapes are exact. Stages of questions draw passages of all lengths, and more of them later in
training. Here all numbers of passages are equally likely, and passages have the usual length in the made-up world,
which `stages/questions.py` names, also where they come from files.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial

from refrag.policies.budget import expansion_budget
from refrag.training.curriculum import batch_shares
from refrag.training.pair_settings import Pair
from refrag.training.settings import AnyRun, Continue, Finetune, Gains, Policy, Pretrain, Reconstruct, Recover, Select
from refrag.training.stages import continuation, reconstruct
from refrag.training.stages.finetune import DENSE_SHARE, continuation_settings
from refrag.training.stages.questions import (
    QUESTIONS_PER_CONTEXT,
    TOKENS_PER_PASSAGE,
    TOKENS_PER_QUESTION,
    num_contexts,
    plain_tokens,
)

# The begin-of-sequence token, which not every decoder has.
BOS_SLOTS = 1
# An encoder with its own tokenizer puts a token before and one behind each chunk.
SPECIAL_TOKENS = 2


@dataclass(frozen=True)
class BatchShape:
    """Shape of one kind of batch on one process.

    share: share of the run's batches that have this shape.
    rows, slots: rows that the decoder reads, and slots in each.
    num_predicted: slots of all rows with something to predict.
    num_chunks, chunk_tokens: chunks that the encoder reads, those of questions too, and tokens in each.
    """

    share: float
    rows: int
    slots: int
    num_predicted: int
    num_chunks: int = 0
    chunk_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """Return the decoder's slots and the encoder's tokens together."""
        return self.rows * self.slots + self.num_chunks * self.chunk_tokens


def batch_shapes(pair: Pair, run: AnyRun) -> list[BatchShape]:
    """Return every kind of batch that the run draws; their shares add up to one."""
    if isinstance(run, Recover):
        return list(_chunk_shapes(pair, run))
    if isinstance(run, Reconstruct | Continue):
        return list(_text_shapes(pair, run))
    if isinstance(run, Pretrain):
        return list(_pretraining_shapes(run))
    if isinstance(run, Finetune):
        return list(_finetuning_shapes(pair, run))
    if isinstance(run, Select):
        return list(_selection_shapes(pair, run))
    return list(_gain_shapes(pair, run) if isinstance(run, Gains) else _policy_shapes(pair, run))


def longest_text_slots(chunk_sizes: Collection[int], run: Reconstruct | Continue) -> int:
    """Return the decoder's slots for the run's longest text, behind the last stage of its curriculum."""
    num_chunks, size = max(run.curriculum.num_chunks), max(chunk_sizes)
    if isinstance(run, Reconstruct):
        return _context_slots(num_chunks, 0.0, size) + num_chunks * size
    fraction = 1.0 if run.form == "plain" else max(run.expand_fractions)
    return _context_slots(num_chunks, fraction, size) + run.continuation_tokens


def replay_shapes(pair: Pair, run: AnyRun) -> list[BatchShape]:
    """Return every kind of replayed batch, which joins one of questions; their shares add up to `run.replay.share`."""
    if not isinstance(run, Finetune) or run.replay is None:
        return []
    batches = batch_shapes(pair, continuation_settings(run, run.replay))
    return [replace(batch, share=batch.share * run.replay.share) for batch in batches]


def _chunk_shapes(pair: Pair, run: Recover) -> Iterator[BatchShape]:
    """Yield batches of chunks that no decoder reads; the readout costs a tenth of the encoder, and is left out."""
    for size in pair.trained_chunk_sizes:
        share, num_chunks = 1 / len(pair.trained_chunk_sizes), max(1, run.tokens_per_step // size)
        yield BatchShape(share, 0, 0, 0, num_chunks, _chunk_tokens(pair, size))


def _text_shapes(pair: Pair, run: Reconstruct | Continue) -> Iterator[BatchShape]:
    """Yield batches of chunks, then of tokens, which are the same text again or its continuation."""
    for size in pair.trained_chunk_sizes:
        num_rows = partial((continuation if isinstance(run, Continue) else reconstruct).num_windows, run, size)
        shares = batch_shares(run.curriculum, num_rows)
        for share, num_chunks in zip(shares, run.curriculum.num_chunks, strict=True):
            length, fractions = num_chunks * size, [0.0]
            if isinstance(run, Continue):
                length, fractions = run.continuation_tokens, [1.0] if run.form == "plain" else run.expand_fractions
            for fraction in fractions:
                rows, slots = num_rows(num_chunks), _context_slots(num_chunks, fraction, size) + length
                encoded = 0 if isinstance(run, Continue) and run.form == "plain" else rows * num_chunks
                one = share / len(pair.trained_chunk_sizes) / len(fractions)
                yield BatchShape(one, rows, slots, rows * length, encoded, _chunk_tokens(pair, size))


def _pretraining_shapes(run: Pretrain) -> Iterator[BatchShape]:
    """Yield batches of text, as which the recitals count, then of questions."""
    rows, question_share = (
        max(1, run.tokens_per_step // run.window_tokens),
        (1 - run.recital_share) * (1 - run.text_share),
    )
    yield BatchShape(1 - question_share, rows, BOS_SLOTS + run.window_tokens, rows * run.window_tokens)
    for num_passages in range(1, run.max_passages + 1):
        length, rows = plain_tokens(num_passages), num_contexts(num_passages, run.tokens_per_step)
        yield BatchShape(question_share / run.max_passages, rows, BOS_SLOTS + length, rows * length)


def _finetuning_shapes(pair: Pair, run: Finetune) -> Iterator[BatchShape]:
    """Yield plain batches, dense ones with all questions behind one context, and ones with a sequence per question."""
    plain_share = 1.0 if run.form == "plain" else run.plain_share
    num_questions = QUESTIONS_PER_CONTEXT if run.questions is None else 1
    question_tokens = num_questions * TOKENS_PER_QUESTION
    kinds = [(n, k) for n in range(1, run.max_passages + 1) for k in pair.trained_chunk_sizes]
    for num_passages, size in kinds:
        length = num_passages * TOKENS_PER_PASSAGE + question_tokens
        # Contexts from files are drawn until their tokens are enough.
        from_files = math.ceil(run.tokens_per_step / length)
        rows = num_contexts(num_passages, run.tokens_per_step) if run.questions is None else from_files
        num_chunks, predicted = num_passages * math.ceil(TOKENS_PER_PASSAGE / size), rows * question_tokens
        num_encoded = rows * (num_chunks + num_questions * math.ceil(TOKENS_PER_QUESTION / size))
        encoded = num_encoded if run.form == "mixed" else 0, _chunk_tokens(pair, size)
        yield BatchShape(plain_share / len(kinds), rows, BOS_SLOTS + length, predicted, *encoded)
        for fraction in run.expand_fractions if plain_share < 1 else []:
            share = (1 - plain_share) / len(kinds) / len(run.expand_fractions)
            context = _context_slots(num_chunks, fraction, size)
            yield BatchShape(share * DENSE_SHARE, rows, context + question_tokens, predicted, *encoded)
            served = share * (1 - DENSE_SHARE), rows * num_questions
            yield BatchShape(*served, context + TOKENS_PER_QUESTION, predicted, *encoded)


def _selection_shapes(pair: Pair, run: Select) -> Iterator[BatchShape]:
    """Yield batches that the encoder alone reads, as if it had met none of their chunks before."""
    kinds = [(n, k) for n in range(2, run.max_passages + 1) for k in pair.trained_chunk_sizes]
    for num_passages, size in kinds:
        num_questions = QUESTIONS_PER_CONTEXT if run.questions is None else 1
        length = num_passages * TOKENS_PER_PASSAGE + num_questions * TOKENS_PER_QUESTION
        from_files = math.ceil(run.tokens_per_step / length)
        rows = num_contexts(num_passages, run.tokens_per_step) if run.questions is None else from_files
        num_chunks = num_passages * math.ceil(TOKENS_PER_PASSAGE / size)
        num_encoded = rows * (num_chunks + num_questions * math.ceil(TOKENS_PER_QUESTION / size))
        yield BatchShape(1 / len(kinds), 0, 0, 0, num_encoded, _chunk_tokens(pair, size))


def _gain_shapes(pair: Pair, run: Gains) -> Iterator[BatchShape]:
    """Yield batches of prompts with one chunk expanded; those with none expanded are a chunk shorter."""
    kinds = [(n, k) for n in range(2, run.max_passages + 1) for k in pair.trained_chunk_sizes]
    for num_passages, size in kinds:
        num_chunks = num_passages * math.ceil(TOKENS_PER_PASSAGE / size)
        num_prompts = 1 + min(run.num_candidates, num_chunks)
        num_questions = math.ceil(run.tokens_per_step / (num_prompts * (num_chunks + size)))
        rows, slots = num_questions * num_prompts, BOS_SLOTS + num_chunks + size - 1 + TOKENS_PER_QUESTION
        num_encoded = num_questions * (num_chunks + math.ceil(TOKENS_PER_QUESTION / size))
        yield BatchShape(
            1 / len(kinds), rows, slots, rows * TOKENS_PER_QUESTION, num_encoded, _chunk_tokens(pair, size)
        )


def _policy_shapes(pair: Pair, run: Policy) -> Iterator[BatchShape]:
    passages = range(2, run.max_passages + 1)
    kinds = [(n, k, f) for n in passages for k in pair.trained_chunk_sizes for f in run.expand_fractions]
    for num_passages, size, fraction in kinds:
        num_chunks = num_passages * math.ceil(TOKENS_PER_PASSAGE / size)
        budget = expansion_budget(max(run.expand_fractions), num_chunks)
        num_questions = math.ceil(run.tokens_per_step / (run.group_size * (num_chunks + budget * size)))
        rows, slots = num_questions * run.group_size, _context_slots(num_chunks, fraction, size) + TOKENS_PER_QUESTION
        num_encoded = num_questions * (num_chunks + math.ceil(TOKENS_PER_QUESTION / size))
        encoded = num_encoded, _chunk_tokens(pair, size)
        yield BatchShape(1 / len(kinds), rows, slots, rows * TOKENS_PER_QUESTION, *encoded)


def _context_slots(num_chunks: int, expand_fraction: float, chunk_size: int) -> int:
    return BOS_SLOTS + num_chunks + expansion_budget(expand_fraction, num_chunks) * (chunk_size - 1)


def _chunk_tokens(pair: Pair, chunk_size: int) -> int:
    """Return the encoder's tokens in a chunk; its own tokenizer cuts text into about as many as the decoder's does."""
    return chunk_size if pair.encoder.pretrained is None else chunk_size + SPECIAL_TOKENS
