"""Mixed prompts of many contexts as one padded batch."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refrag.chunking import Chunk, Chunker
from refrag.prompt import lay_out_prompt
from refrag.training.data import TokenisedContext, TokenisedQuestion

# B sequences, S slots, N chunks of the whole batch, C chunks of the longest context, P (context, question) pairs


@dataclass(frozen=True)
class LossWeights:
    """Weight of a predicted token in the loss: short answers would drown in context tokens at equal weight."""

    answer: float = 3.0
    other: float = 0.2


@dataclass(frozen=True)
class MixedExample:
    """One sequence: the chunks of a context, those to expand, and the questions to answer one after another.

    first_row: row of the batch's chunk embeddings where those of these chunks start.
    """

    chunks: list[Chunk]
    expanded: set[int]
    questions: list[TokenisedQuestion]
    first_row: int = 0


@dataclass(frozen=True)
class MixedBatch:
    """input_ids (B, S): an id ≥ vocab_size is row (id − vocab_size) of the batch's N chunk embeddings.
    labels (B, S): the token that slot s must predict. weights (B, S): 0 where there is nothing to predict.
    """

    input_ids: Tensor
    labels: Tensor
    weights: Tensor
    is_answer: Tensor


@dataclass(frozen=True)
class PolicyBatch:
    """One row for each question of each context, as ExpansionPolicy.forward takes them.

    answers: 1 where a chunk holds the answer.
    """

    chunk_rows: Tensor  # (P, C) rows of the batch's chunk vectors
    passages: Tensor  # (P, C)
    question_rows: Tensor  # (P, Q) rows of the batch's question vectors
    question_mask: Tensor  # (P, Q)
    answers: Tensor  # (P, C)


def collate_mixed(
    examples: Sequence[MixedExample], vocab_size: int, bos_id: int | None, weights: LossWeights
) -> MixedBatch:
    """Lay out each example's mixed prompt, then its questions with their answers."""
    rows = [_lay_out_row(example, vocab_size, bos_id) for example in examples]
    length = max(len(ids) for ids, _ in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    is_text = torch.zeros(len(rows), length, dtype=torch.bool)
    is_answer = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, (ids, answer_flags) in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        is_text[row, : len(ids)] = torch.tensor(ids) < vocab_size
        is_answer[row, : len(ids)] = torch.tensor(answer_flags)
    token_weights = is_text * weights.other
    token_weights[is_answer] = weights.answer
    # Slot s predicts what stands in slot s + 1; behind the last slot stands nothing.
    labels, token_weights, is_answer = (tensor.roll(-1, 1) for tensor in (input_ids, token_weights, is_answer))
    token_weights[:, -1] = 0.0
    is_answer[:, -1] = False
    return MixedBatch(input_ids, labels, token_weights, is_answer)


def first_rows(contexts: Sequence[TokenisedContext]) -> list[int]:
    """Row of the batch's chunk vectors where those of each context start."""
    return [0, *itertools.accumulate(len(context.chunks) for context in contexts)][:-1]


def _lay_out_row(example: MixedExample, vocab_size: int, bos_id: int | None) -> tuple[list[int], list[bool]]:
    """Ids, with rows numbered from the example's first one, and which of them belong to an answer."""
    prompt = lay_out_prompt(example.chunks, example.expanded, [], vocab_size, bos_id)
    first = vocab_size + example.first_row
    rows = {vocab_size + place: first + number for place, number in enumerate(prompt.compressed)}
    ids = [rows.get(i, i) for i in prompt.input_ids.tolist()]
    answer_flags = [False] * len(ids)
    for question in example.questions:
        ids += question.prompt_ids + question.answer_ids
        answer_flags += [False] * len(question.prompt_ids) + [True] * len(question.answer_ids)
    return ids, answer_flags


def collate_policy(contexts: Sequence[TokenisedContext]) -> PolicyBatch:
    pairs, first_row, question_row = [], 0, 0
    for context in contexts:
        for question in context.questions:
            pairs.append((context, question, first_row, question_row))
            question_row += len(question.chunks)
        first_row += len(context.chunks)
    width = max(len(context.chunks) for context in contexts)
    question_width = max(len(question.chunks) for _, question, _, _ in pairs)
    batch = PolicyBatch(
        chunk_rows=torch.zeros(len(pairs), width, dtype=torch.long),
        passages=torch.full((len(pairs), width), -1),
        question_rows=torch.zeros(len(pairs), question_width, dtype=torch.long),
        question_mask=torch.zeros(len(pairs), question_width, dtype=torch.bool),
        answers=torch.zeros(len(pairs), width),
    )
    for row, (context, question, first, first_question) in enumerate(pairs):
        count, question_count = len(context.chunks), len(question.chunks)
        batch.chunk_rows[row, :count] = torch.arange(first, first + count)
        batch.passages[row, :count] = torch.tensor([chunk.passage for chunk in context.chunks])
        batch.question_rows[row, :question_count] = torch.arange(first_question, first_question + question_count)
        batch.question_mask[row, :question_count] = True
        batch.answers[row, question.answer_chunks] = 1.0
    return batch


def encoder_tensors(chunker: Chunker, chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor]:
    """Encoder ids and attention mask of the chunks, both (N, L)."""
    ids, mask = chunker.encoder_inputs(chunks)
    return torch.from_numpy(ids), torch.from_numpy(mask)
