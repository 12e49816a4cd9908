"""Contexts of rows: a row's passages and question as the pipeline prepares them, and its prompt under a condition."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from refrag.config import LEARNED_POLICY
from refrag.context.conversation import policy_question
from refrag.context.prepare import PreparedContext
from refrag.data.questions.arrange import only_gold
from refrag.data.questions.row import QuestionRow
from refrag.data.spans import Spans
from refrag.decoders.base import MixedPrompt
from refrag.errors import InvalidRequest
from refrag.evaluation.conditions import Condition
from refrag.evaluation.models import Models
from refrag.evaluation.questions import base_encoder
from refrag.evaluation.questions.base_encoder import BaseEncoder
from refrag.evaluation.questions.choices import choose_by_oracle
from refrag.pipeline import Pipeline
from refrag.policies.budget import expansion_budget
from refrag.request import ExpansionOptions, Request

# C chunks, Q question chunks, E encoder width

# The served policies with other settings than the checkpoint's -> the policy.
AS_SERVED, ALL_HEADS = "learned as served", "attention all heads"
VARIANTS = {AS_SERVED: LEARNED_POLICY, ALL_HEADS: "attention"}
# Window of the pipelines: `Contexts` itself cuts what is beyond that of a condition.
UNLIMITED = 2**31 - 1


@dataclass(frozen=True)
class RowContext:
    """An arranged row at one chunk size, encoded by the pipeline."""

    row: QuestionRow
    context: PreparedContext
    vectors: Tensor  # (C, E)
    question_vectors: Tensor  # (Q, E)

    @property
    def places(self) -> np.ndarray:
        """Return the position of each chunk's passage in the row; those of earlier turns are behind the last.  (C,)"""
        return self.context.chunks.passages

    @property
    def by_worth(self) -> np.ndarray:
        """Return the numbers of the chunks, those first that are cut last: passages in order, then the newest turns."""
        is_turn = self.places >= len(self.row.passages)
        return np.concatenate([np.flatnonzero(~is_turn), np.flatnonzero(is_turn)[::-1]])

    def keep(self, num_chunks: int) -> "RowContext":
        """Return the same row with as many chunks, the others cut."""
        kept = np.sort(self.by_worth[:num_chunks])
        context = replace(self.context, chunks=self.context.chunks[kept])
        return replace(self, context=context, vectors=self.vectors[torch.from_numpy(kept)])


@dataclass(frozen=True)
class RowPrompt:
    """The prompt of a row under a condition.

    expanded: numbers of the expanded chunks.
    places: position in the row of the passage of each chunk in the prompt, (C,).
    cut_tokens: tokens of the context that the window left out.
    """

    prompt: MixedPrompt
    expanded: Sequence[int]
    places: np.ndarray
    context_tokens: int
    cut_tokens: int


class Contexts:
    """Prompts of rows for the models to compare.

    make_request: turns a row into what a client would send. window: slots of prompt and answer; None for each decoder's
    own. max_tokens: of an answer. Raises InvalidRequest for a window beyond that of either decoder.
    """

    def __init__(
        self,
        models: Models,
        make_request: Callable[[QuestionRow], Request],
        window: int | None,
        max_tokens: int,
        seed: int,
    ) -> None:
        _refuse_window(models, window)
        self.models, self.make_request = models, make_request
        self.window, self.max_tokens, self.seed = window, max_tokens, seed
        self._pipelines: dict[tuple[int, bool, bool, bool], Pipeline] = {}
        self._encoded: dict[tuple[str, int], RowContext] = {}

    def build(self, row: QuestionRow, control: QuestionRow | None, condition: Condition) -> RowPrompt:
        """Return the row's prompt; `control` is the row that "shuffled" takes its vectors from, others need none."""
        if condition.form == "compressed":
            return self._build_compressed(row, control, condition)
        return self._build_plain(row, condition)

    def answer_ids(self, answer: str) -> list[int]:
        """Return the tokens of an answer, as training has them."""
        return self._pipeline(Condition("full", self.models.checkpoint.config.chunk_size)).chunker.answer_ids(answer)

    def refuse_long_questions(self, rows: Sequence[QuestionRow]) -> None:
        """Raise InvalidRequest for a row whose question alone is beyond the window under any condition."""
        chunk_size = self.models.checkpoint.config.chunk_size
        for condition in (Condition("none", chunk_size), Condition("compressed", chunk_size)):
            pipeline = self._pipeline(condition)
            for row in rows:
                self._room(pipeline, self._without_vectors(replace(row, passages=(), gold=None), pipeline), condition)

    def keep_only(self, *rows: QuestionRow | None) -> None:
        """Free what is kept of other rows."""
        ids = {row.id for row in rows if row is not None}
        self._encoded = {key: value for key, value in self._encoded.items() if key[0] in ids}

    def _build_plain(self, row: QuestionRow, condition: Condition) -> RowPrompt:
        if condition.form == "none":
            row = replace(row, passages=(), gold=None)
        elif condition.form == "gold":
            row = only_gold(row)
        pipeline = self._pipeline(condition)
        whole = self._without_vectors(row, pipeline)
        room = self._room(pipeline, whole, condition)
        if condition.form == "truncated":
            room = min(room, self._slots(row, condition))
        kept = whole.keep(_num_fitting(whole, 1.0, room))
        return self._lay_out(pipeline, whole, kept, range(len(kept.context.chunks)), kept.vectors)

    def _build_compressed(self, row: QuestionRow, control: QuestionRow | None, condition: Condition) -> RowPrompt:
        pipeline, whole = self._pipeline(condition), self._encode(row, condition)
        room = self._room(pipeline, whole, condition)
        kept = whole.keep(_num_fitting(whole, condition.expand_fraction, room))
        expanded = self._select(pipeline, kept, condition)
        vectors = kept.vectors
        if condition.embeddings == "shuffled":
            assert control is not None
            vectors = _repeat(self._encode(control, condition).vectors, len(vectors))
        built = self._lay_out(pipeline, whole, kept, expanded, vectors)
        if condition.embeddings == "zeroed":
            prompt = built.prompt
            return replace(built, prompt=replace(prompt, chunk_embeddings=torch.zeros_like(prompt.chunk_embeddings)))
        return built

    def _lay_out(
        self, pipeline: Pipeline, whole: RowContext, kept: RowContext, expanded: Sequence[int], vectors: Tensor
    ) -> RowPrompt:
        _, prompt = pipeline.build_prompt(kept.context, list(expanded), vectors)
        num_tokens = whole.context.chunks.num_tokens
        return RowPrompt(prompt, expanded, kept.places, num_tokens, num_tokens - kept.context.chunks.num_tokens)

    def _select(self, pipeline: Pipeline, kept: RowContext, condition: Condition) -> list[int]:
        fraction, selection = condition.expand_fraction, condition.selection
        budget = expansion_budget(fraction, len(kept.context.chunks))
        if selection == base_encoder.NAME:
            return self._base_encoder.rank(kept.context.chunks, self._policy_question(kept.row))[:budget]
        if selection == "oracle":
            return choose_by_oracle(kept.row, Spans(pipeline.chunker), kept.places)[:budget]
        options = ExpansionOptions(fraction, VARIANTS.get(selection, selection), self._seed(kept.row))
        return list(pipeline.select(options, kept.context, kept.vectors, kept.question_vectors).numbers)

    def _policy_question(self, row: QuestionRow) -> str:
        request = self.make_request(row)
        return policy_question(request.question, request.earlier_pairs, self.models.checkpoint.chunker)

    @cached_property
    def _base_encoder(self) -> BaseEncoder:
        return BaseEncoder(self.models.checkpoint)

    def _seed(self, row: QuestionRow) -> int:
        """Return the seed that the row's request carries, for policies that draw."""
        return random.Random(f"{self.seed} {row.id}").getrandbits(32)

    def _room(self, pipeline: Pipeline, whole: RowContext, condition: Condition) -> int:
        """Return the slots that the window leaves for the context."""
        window = self.window or self.models.window(condition.form)
        empty = whole.keep(0)
        rest = pipeline.build_prompt(empty.context, [], empty.vectors)[0].num_slots + self.max_tokens
        if rest > window:
            raise InvalidRequest(
                f"row {whole.row.id!r}: its question and newest turns need {rest} slots with max_tokens, the window is "
                f"{window}; lower max_tokens or history_turns, or leave the row out"
            )
        return window - rest

    def _slots(self, row: QuestionRow, condition: Condition) -> int:
        """Return the slots of the row's context if it were compressed at the condition's size and fraction."""
        num_chunks = len(self._prepare(row, self._pipeline(condition)).chunks)
        return _most_slots(num_chunks, condition.expand_fraction, condition.chunk_size)

    def _without_vectors(self, row: QuestionRow, pipeline: Pipeline) -> RowContext:
        """Return the row for a prompt in which no chunk stays compressed: nothing reads its vectors, all zeros."""
        context = self._prepare(row, pipeline)
        encoder = self.models.checkpoint.encoder
        vectors = torch.zeros(len(context.chunks), encoder.width, device=encoder.device)
        return RowContext(row, context, vectors, vectors[:0])

    def _encode(self, row: QuestionRow, condition: Condition) -> RowContext:
        key = row.id, condition.chunk_size
        if key not in self._encoded:
            pipeline = self._pipeline(condition)
            context = self._prepare(row, pipeline)
            self._encoded[key] = RowContext(row, context, *pipeline.encode(context))
        return self._encoded[key]

    def _prepare(self, row: QuestionRow, pipeline: Pipeline) -> PreparedContext:
        return pipeline.prepare(self.make_request(row), self.max_tokens)

    def _pipeline(self, condition: Condition) -> Pipeline:
        """Return the served pipeline, whose learned policy spends the whole budget unless it is asked as served.

        For a plain condition it has the plain decoder; for attention of all heads none that were found.
        """
        spends_all, is_plain = condition.selection == LEARNED_POLICY, condition.form != "compressed"
        reads_all = condition.selection == ALL_HEADS
        key = condition.chunk_size, spends_all, reads_all, is_plain
        if key not in self._pipelines:
            checkpoint = self.models.checkpoint.with_chunk_size(condition.chunk_size)
            config = replace(checkpoint.config, max_prompt_slots=UNLIMITED)
            checkpoint = replace(checkpoint, config=replace(config, policy_confidence=1.0) if spends_all else config)
            if reads_all:
                checkpoint = replace(checkpoint, heads=None)
            if is_plain:
                checkpoint = replace(checkpoint, decoder=self.models.plain)
            self._pipelines[key] = Pipeline(checkpoint)
        return self._pipelines[key]


def _refuse_window(models: Models, window: int | None) -> None:
    own = {"compressed": models.window("compressed"), "plain": models.window("full")}
    if window is not None and window > min(own.values()):
        raise InvalidRequest(
            f"window is {window}; the decoders have {own['compressed']} (compressed) and {own['plain']} (plain) slots: "
            "give no more than either, or leave it out for each decoder's own"
        )


def _num_fitting(whole: RowContext, expand_fraction: float, room: int) -> int:
    """Return how many of the chunks that are cut last fit the room, whichever of them are expanded."""
    chunks = whole.context.chunks
    if expand_fraction == 1:
        return int((chunks.lengths[whole.by_worth].cumsum() <= room).sum())
    size = chunks.token_ids.shape[1]
    num_chunks = len(chunks)
    while _most_slots(num_chunks, expand_fraction, size) > room:
        num_chunks -= 1
    return num_chunks


def _most_slots(num_chunks: int, expand_fraction: float, chunk_size: int) -> int:
    return num_chunks + expansion_budget(expand_fraction, num_chunks) * (chunk_size - 1)


def _repeat(vectors: Tensor, count: int) -> Tensor:
    """Return the first `count` vectors, from the first again if there are too few.  (C, E) -> (count, E)"""
    return vectors[torch.arange(count, device=vectors.device) % len(vectors)]
