"""Lays out batches of mixed prompts: what the encoder reads, what the decoder's slots hold, and what is predicted.

An example is a context of chunks, some of them expanded, then segments of text:

    slots     ^ A B c c c c D q q q a a      A B D chunk embeddings, c an expanded chunk, q a question, a its answer
    weight    . . . 0 0 0 0 . 0 0 0 1 1      in the loss, of predicting this slot from those before it

With packing several examples share a row. Position ids start anew with each example: so Hugging Face decoders
recognise that none may see another.
"""

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from refrag.context.chunking import Chunk, Chunker, PackedChunks
from refrag.data.contexts import TokenisedContext, TokenisedQuestion
from refrag.errors import TrainingError
from refrag.prompt import lay_out_prompt
from refrag.teacher_forcing.distribution import TopDistribution
from refrag.teacher_forcing.movable import Movable

# R rows, S slots, N chunks of the whole batch, L encoder tokens per chunk, C chunks of the longest context,
# P (context, question) pairs, Q question chunks


@dataclass(frozen=True)
class Segment:
    """Text behind the context, and the weight of each of its tokens in the loss.

    target: a teacher's distribution before each of the tokens; None without a teacher.
    """

    token_ids: Sequence[int]
    weight: float
    is_answer: bool = False
    target: TopDistribution | None = None


@dataclass(frozen=True)
class MixedExample:
    """Context of chunks, some of them expanded, and the segments of text behind it.

    expanded: numbers of the expanded chunks.
    first_row: row of the batch's chunk embeddings where those of these chunks start.
    context_weight: weight of each token of an expanded chunk in the loss.
    """

    chunks: Sequence[Chunk]
    expanded: Collection[int]
    segments: Sequence[Segment]
    first_row: int = 0
    context_weight: float = 0.0

    def within(self, num_slots: int) -> "MixedExample":
        """Return the example with as many of its first chunks as these slots hold beside its segments.

        Raises TrainingError if the segments alone need more.
        """
        needed = sum(len(segment.token_ids) for segment in self.segments)
        if needed > num_slots:
            raise TrainingError(
                f"the questions and answers of one context need {needed} slots, and max_prompt_slots of the pair "
                f"leaves {num_slots} for them; give the pair a longer window, or shorten them"
            )
        is_expanded = np.isin(np.arange(len(self.chunks)), list(self.expanded))
        slots = np.where(is_expanded, PackedChunks.of(self.chunks).lengths, 1)
        num_kept = int((slots.cumsum() <= num_slots - needed).sum())
        kept = {number for number in self.expanded if number < num_kept}
        return replace(self, chunks=self.chunks[:num_kept], expanded=kept)


@dataclass(frozen=True)
class LaidOutExample:
    """Slots of one example: the id in each, the weight of predicting it, and whether it belongs to an answer.

    targets: first slot and target of each segment that has one.
    """

    token_ids: list[int]
    weights: list[float]
    is_answer: list[bool]
    targets: list[tuple[int, TopDistribution]] = field(default_factory=list)


@dataclass(frozen=True)
class EncoderBatch(Movable):
    """Inputs of the encoder for all chunks of a batch, both (N, L)."""

    input_ids: Tensor
    attention_mask: Tensor


@dataclass(frozen=True)
class MixedBatch(Movable):
    """Rows of slots for the decoder, with what each slot must predict.

    input_ids (R, S): an id ≥ vocab_size is row (id − vocab_size) of the batch's N chunk embeddings.
    labels (R, S): the token that slot s must predict. weights (R, S): 0 where there is nothing to predict.
    position_ids (R, S) for packed rows, None where each row is one example from its first slot on.
    example_ids (R, S): number of the example that a slot belongs to.
    target_rows (R, S): row of `targets` that slot s should predict, −1 where there is none. Both None without teacher.
    """

    input_ids: Tensor
    labels: Tensor
    weights: Tensor
    is_answer: Tensor
    example_ids: Tensor
    position_ids: Tensor | None
    chunks: EncoderBatch | None = None
    target_rows: Tensor | None = None
    targets: TopDistribution | None = None


@dataclass(frozen=True)
class PolicyBatch(Movable):
    """Inputs of ExpansionPolicy.forward, one row for each question of each context, with what it should select.

    evidence: 1 where a chunk holds what an answer needs, else 0.
    """

    chunk_rows: Tensor  # (P, C) rows of the batch's chunk vectors
    passages: Tensor  # (P, C)
    question_rows: Tensor  # (P, Q) rows of the batch's question vectors
    question_mask: Tensor  # (P, Q)
    evidence: Tensor  # (P, C)


@dataclass(frozen=True)
class ContextBatch(Movable):
    """Contexts with their questions, before chunks are selected and prompts laid out.

    seed: decides what is drawn for that.
    """

    contexts: list[TokenisedContext]
    chunks: EncoderBatch
    questions: EncoderBatch
    policy: PolicyBatch
    seed: int


def collate_mixed(
    examples: Sequence[MixedExample],
    vocab_size: int,
    head_ids: Sequence[int],
    row_slots: int | None = None,
    window: int | None = None,
) -> MixedBatch:
    """Lay out the examples, one per row, or packed into rows of `row_slots` (longer where one example needs it).

    window: most slots of one example; a context that is longer is cut, as evaluation cuts it. None for any length.
    """
    if window is not None:
        examples = [example.within(window - len(head_ids)) for example in examples]
    return collate_rows([_lay_out(example, vocab_size, head_ids) for example in examples], row_slots)


def collate_rows(examples: Sequence[LaidOutExample], row_slots: int | None = None) -> MixedBatch:
    """Put examples that are laid out already into rows, as collate_mixed does."""
    lengths = [len(example.token_ids) for example in examples]
    if row_slots is None:
        rows = [[number] for number in range(len(examples))]
    else:
        # One example that needs a longer row makes all rows as long; others then fill them.
        rows = pack(lengths, max(row_slots, *lengths))
    shape = (len(rows), max(sum(lengths[number] for number in row) for row in rows))
    input_ids, example_ids = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
    weights, is_answer = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
    position_ids, target_rows = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
    targets: list[TopDistribution] = []
    for row, numbers in enumerate(rows):
        start = 0
        for number in numbers:
            example, place = examples[number], slice(start, start + lengths[number])
            input_ids[row, place] = torch.tensor(example.token_ids)
            weights[row, place] = torch.tensor(example.weights)
            is_answer[row, place] = torch.tensor(example.is_answer)
            example_ids[row, place] = number
            position_ids[row, place] = torch.arange(lengths[number])
            weights[row, start] = 0.0  # nothing of its own stands before an example's first slot
            for slot, target in example.targets:
                first_target = sum(map(len, targets))
                own = slice(start + slot, start + slot + len(target))
                target_rows[row, own] = torch.arange(first_target, first_target + len(target))
                targets.append(target)
            start += lengths[number]
    # Slot s predicts what stands in slot s + 1; behind the last slot stands nothing.
    labels, weights, is_answer, target_rows = (
        tensor.roll(-1, 1) for tensor in (input_ids, weights, is_answer, target_rows)
    )
    weights[:, -1] = 0.0
    is_answer[:, -1] = False
    positions = position_ids if row_slots is not None else None
    batch = MixedBatch(input_ids, labels, weights, is_answer, example_ids, positions)
    if not targets:
        return batch
    return replace(batch, target_rows=target_rows, targets=TopDistribution.joined(targets))


def pack(lengths: Sequence[int], row_slots: int) -> list[list[int]]:
    """Return the examples' numbers in each row: longest first, each put into the first row that has room for it."""
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        fitting = next((row for row, left in enumerate(room) if left >= lengths[number]), None)
        if fitting is None:
            rows.append([number])
            room.append(row_slots - lengths[number])
        else:
            rows[fitting].append(number)
            room[fitting] -= lengths[number]
    return rows


def encoder_batch(chunker: Chunker, chunks: Sequence[Chunk]) -> EncoderBatch:
    """Return what the encoder reads of the chunks, no wider than the longest of them."""
    ids, mask = chunker.encoder_inputs(chunks)
    width = max(1, int((mask > 0).sum(1).max(initial=1)))
    return EncoderBatch(torch.from_numpy(ids[:, :width].copy()), torch.from_numpy(mask[:, :width].copy()))


def collate_contexts(chunker: Chunker, contexts: list[TokenisedContext], seed: int = 0) -> ContextBatch:
    """Return the contexts as a batch, with the inputs of the encoder and of the policy."""
    questions = [question for context in contexts for question in context.questions]
    return ContextBatch(
        contexts=contexts,
        chunks=encoder_batch(chunker, PackedChunks.of(*(context.chunks for context in contexts))),
        questions=encoder_batch(chunker, PackedChunks.of(*(question.chunks for question in questions))),
        policy=_collate_policy(contexts),
        seed=seed,
    )


def first_rows(runs: Iterable[Sequence[Chunk]]) -> list[int]:
    """Return the row of the batch's chunk vectors where those of each run of chunks start."""
    return [0, *itertools.accumulate(map(len, runs))][:-1]


def question_segments(
    question: TokenisedQuestion, answer_weight: float = 1.0, question_weight: float = 0.0
) -> list[Segment]:
    """Return the question and its answer as segments, whose tokens have these weights in the loss."""
    answer = Segment(question.answer_ids, answer_weight, is_answer=True, target=question.target)
    return [Segment(question.prompt_ids, question_weight), answer]


def _lay_out(example: MixedExample, vocab_size: int, head_ids: Sequence[int]) -> LaidOutExample:
    """Return context and segments, with rows of chunk embeddings numbered from the example's first one."""
    prompt = lay_out_prompt(PackedChunks.of(example.chunks), example.expanded, [], vocab_size, head_ids)
    first = vocab_size + example.first_row
    rows = {vocab_size + place: first + number for place, number in enumerate(prompt.compressed.tolist())}
    ids = [rows.get(i, i) for i in prompt.input_ids.tolist()]
    context = ids[len(head_ids) :]
    weights = [0.0] * len(head_ids) + [example.context_weight if i < vocab_size else 0.0 for i in context]
    answer_flags, targets = [False] * len(ids), []
    for segment in example.segments:
        if segment.target is not None:
            targets.append((len(ids), segment.target))
        ids += segment.token_ids
        weights += [segment.weight] * len(segment.token_ids)
        answer_flags += [segment.is_answer] * len(segment.token_ids)
    return LaidOutExample(ids, weights, answer_flags, targets)


def _collate_policy(contexts: Sequence[TokenisedContext]) -> PolicyBatch:
    pairs, first_row, question_row = [], 0, 0
    for context in contexts:
        for question in context.questions:
            pairs.append((context, question, first_row, question_row))
            question_row += len(question.chunks)
        first_row += len(context.chunks)
    width = max(1, *(len(context.chunks) for context in contexts))
    question_width = max(len(question.chunks) for _, question, _, _ in pairs)
    batch = PolicyBatch(
        chunk_rows=torch.zeros(len(pairs), width, dtype=torch.long),
        passages=torch.full((len(pairs), width), -1),
        question_rows=torch.zeros(len(pairs), question_width, dtype=torch.long),
        question_mask=torch.zeros(len(pairs), question_width, dtype=torch.bool),
        evidence=torch.zeros(len(pairs), width),
    )
    for row, (context, question, first, first_question) in enumerate(pairs):
        count, question_count = len(context.chunks), len(question.chunks)
        batch.chunk_rows[row, :count] = torch.arange(first, first + count)
        batch.passages[row, :count] = torch.from_numpy(context.chunks.passages)
        batch.question_rows[row, :question_count] = torch.arange(first_question, first_question + question_count)
        batch.question_mask[row, :question_count] = True
        batch.evidence[row, question.evidence_chunks] = 1.0
    return batch
