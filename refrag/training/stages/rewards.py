"""The parts that the stages with rewards share: the policy trains, and the decoder judges what it may expand."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from refrag.context.chunking import Chunker
from refrag.data.contexts import ContextMaker, TokenisedContext
from refrag.data.tasks import SINGLE_TASKS
from refrag.model.checkpoint import Checkpoint
from refrag.teacher_forcing.batches import (
    ContextBatch,
    MixedExample,
    collate_contexts,
    collate_mixed,
    first_rows,
    question_segments,
)
from refrag.teacher_forcing.movable import Movable
from refrag.teacher_forcing.predict import predict
from refrag.training.memory import VectorMemory
from refrag.training.objective import Objective, Outcome
from refrag.training.settings import Gains, Policy
from refrag.training.stages.questions import policy_logits, train_policy
from refrag.training.stages.rows import ContextSource, RowSource

RewardedRun = TypeVar("RewardedRun", Gains, Policy)

# P questions, C chunks of the longest context, G selections per question, T picks of the largest,
# N chunks of the batch, E encoder width


@dataclass(frozen=True)
class EncodedContexts(Movable):
    """Contexts with their vectors: all that the policy needs to score their chunks anew."""

    batch: ContextBatch
    chunk_vectors: Tensor  # (N, E)
    question_vectors: Tensor  # question chunks of the batch, E wide


class RewardedSource(ContextSource[RewardedRun], ABC):
    """Source of questions, each over passages of its own; all tasks are equally likely."""

    def draw(self, rng: random.Random, progress: float) -> ContextBatch:
        chunker = self.draw_chunker(rng)
        draw_context = self._open_draws(rng, chunker)
        contexts, num_slots = [], 0
        while num_slots < self.settings.tokens_per_step:
            context = draw_context()
            contexts.append(context)
            num_slots += self.num_slots(context, chunker.config.chunk_size)
        return collate_contexts(chunker, contexts, seed=rng.getrandbits(32))

    @abstractmethod
    def num_slots(self, context: TokenisedContext, chunk_size: int) -> int:
        """Return about how many slots the decoder reads to judge a context's chunks."""

    def _open_draws(self, rng: random.Random, chunker: Chunker) -> Callable[[], TokenisedContext]:
        """Return what draws contexts, from the files or from one new world."""
        if self.rows is not None:
            return partial(self._draw_row, rng, chunker, self.rows)
        return partial(self._ask, rng, ContextMaker.draw(rng, chunker))

    def _draw_row(self, rng: random.Random, chunker: Chunker, rows: RowSource) -> TokenisedContext:
        return rows.draw(rng, chunker, rng.randint(2, self.settings.max_passages), num_tokens=1)[0]

    def _ask(self, rng: random.Random, maker: ContextMaker) -> TokenisedContext:
        task, num_passages = rng.choice(self.settings.tasks), rng.randint(2, self.settings.max_passages)
        if task in SINGLE_TASKS and rng.random() < self.settings.rival_share:
            return maker.ask_among_rivals(rng, num_passages, 1, [task])
        return maker.ask_one(rng, task, num_passages, is_honest=True)


class RewardedPolicy(Objective, ABC, Generic[RewardedRun]):
    """Objective of the policy alone, with everything else frozen."""

    needs_rollout = True

    def __init__(self, checkpoint: Checkpoint, settings: RewardedRun) -> None:
        super().__init__()
        self.settings: RewardedRun = settings
        self.updates_per_batch = settings.updates_per_batch
        self.head_ids, self.window = checkpoint.chunker.frame.head_ids, checkpoint.config.max_prompt_slots
        self.encoder, self.projector, self.decoder = checkpoint.encoder, checkpoint.projector, checkpoint.decoder
        for frozen in (self.encoder, self.projector, self.decoder):
            frozen.requires_grad_(False)
        self.policy = checkpoint.require_policy()
        train_policy(self.policy)
        self.memory = VectorMemory(self.encoder)

    def forward(self, batch: Any, rollout_seed: int | None = None) -> Any:
        if isinstance(batch, EncodedContexts):
            return self.improve(batch)
        assert rollout_seed is not None
        return self.roll_out(batch, rollout_seed)

    @abstractmethod
    def roll_out(self, batch: ContextBatch, seed: int) -> EncodedContexts:
        """Return the batch with what the decoder says of its chunks."""

    @abstractmethod
    def improve(self, rollouts: Any) -> Outcome:
        """Return the policy's loss on a rollout."""

    def encode(self, batch: ContextBatch) -> EncodedContexts:
        return EncodedContexts(batch, self.memory.encode(batch.chunks), self.memory.encode(batch.questions))

    def scores(self, contexts: EncodedContexts) -> Tensor:
        """Return the policy's logits.  -> (P, C)"""
        return policy_logits(self.policy, contexts.batch, contexts.chunk_vectors, contexts.question_vectors)

    @torch.no_grad()
    def rewards(self, batch: ContextBatch, vectors: Tensor, picks: Tensor) -> tuple[Tensor, float]:
        """Return minus the answer's log-perplexity under each selection (P, G), and the share of right answers.

        picks (P, G, T): numbers of the chunks to expand, −1 for none.
        """
        num_questions, group_size, _ = picks.shape
        examples: Sequence[MixedExample] = [
            MixedExample(context.chunks, set(row) - {-1}, question_segments(context.questions[0]), first_row)
            for context, first_row, group in zip(
                batch.contexts, first_rows(c.chunks for c in batch.contexts), picks.tolist(), strict=True
            )
            for row in group
        ]
        row_slots, window = self.settings.row_slots, self.window
        mixed = collate_mixed(examples, self.decoder.vocab_size, self.head_ids, row_slots, window).to(vectors.device)
        prediction = predict(self.decoder, mixed, self.projector(vectors))
        rewards = -prediction.mean_loss_per_example(len(examples)).view(num_questions, group_size)
        return rewards, float(prediction.all_right_per_example(len(examples)).float().mean())
