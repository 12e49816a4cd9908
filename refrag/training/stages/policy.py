"""Reinforcement of the expansion policy (paper §3 and appendix): GRPO, with everything but the policy frozen.

For each question a group of selections is sampled, chunk after chunk from the masked softmax. The reward of a
selection is minus the log-perplexity of the true answer, given the prompt with just its chunks expanded. The
advantage compares a reward with those of its group; all picks of a selection share it in a PPO-clipped loss. The
paper gives no group size, clip range or learning rate; `settings.Policy` and the presets have ours.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from refrag.context.chunking import Chunker
from refrag.data.contexts import ContextMaker, TokenisedContext
from refrag.data.tasks import SINGLE_TASKS
from refrag.model.checkpoint import Checkpoint
from refrag.model.policy import log_probabilities_in_turn, sample_in_turn
from refrag.policies.budget import expansion_budget
from refrag.teacher_forcing.batches import (
    ContextBatch,
    MixedExample,
    collate_contexts,
    collate_mixed,
    first_rows,
    question_segments,
)
from refrag.teacher_forcing.movable import Movable
from refrag.teacher_forcing.predict import encode, predict
from refrag.training.objective import Objective, Outcome
from refrag.training.settings import Policy
from refrag.training.stages.questions import policy_logits, train_policy
from refrag.training.stages.rows import RowSource

# P questions, C chunks of the longest context, G selections per question, T picks of the largest budget,
# N chunks of the batch, E encoder width


@dataclass(frozen=True)
class Rollouts(Movable):
    """Sampled selections with their advantages, and all that the policy needs to compute their probabilities anew."""

    batch: ContextBatch
    chunk_vectors: Tensor  # (N, E)
    question_vectors: Tensor  # question chunks of the batch, E wide
    picks: Tensor  # (P, G, T), −1 beyond the budget
    log_probabilities: Tensor  # (P, G, T) of each pick when it was sampled
    advantages: Tensor  # (P, G)
    mean_reward: float
    accuracy: float


class PolicySource:
    """Source of questions, each over passages of its own; all tasks are equally likely."""

    def __init__(self, checkpoint: Checkpoint, settings: Policy) -> None:
        self.checkpoint, self.settings = checkpoint, settings
        self.rows = None if settings.questions is None else RowSource(settings.questions)

    def draw(self, rng: random.Random, progress: float) -> ContextBatch:
        chunk_size = rng.choice(self.checkpoint.config.trained_chunk_sizes)
        chunker = self.checkpoint.with_chunk_size(chunk_size).chunker
        draw_context = self._open_draws(rng, chunker)
        contexts, num_slots = [], 0
        while num_slots < self.settings.tokens_per_step:
            context = draw_context()
            contexts.append(context)
            budget = expansion_budget(max(self.settings.expand_fractions), len(context.chunks))
            num_slots += self.settings.group_size * (len(context.chunks) + budget * chunk_size)
        return collate_contexts(chunker, contexts, seed=rng.getrandbits(32))

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

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Do nothing: every batch draws its own questions, so there is no position to go back to."""


class PolicyOptimisation(Objective):
    """Clipped loss of the policy over sampled selections; the policy alone trains."""

    needs_rollout = True

    def __init__(self, checkpoint: Checkpoint, settings: Policy) -> None:
        super().__init__()
        self.settings = settings
        self.updates_per_batch = settings.updates_per_batch
        self.head_ids = checkpoint.chunker.frame.head_ids
        self.encoder, self.projector, self.decoder = checkpoint.encoder, checkpoint.projector, checkpoint.decoder
        for frozen in (self.encoder, self.projector, self.decoder):
            frozen.requires_grad_(False)
        self.policy = checkpoint.require_policy()
        train_policy(self.policy)

    def forward(self, batch: ContextBatch | Rollouts, rollout_seed: int | None = None) -> Outcome | Rollouts:
        if isinstance(batch, Rollouts):
            return self.improve(batch)
        assert rollout_seed is not None
        return self.roll_out(batch, rollout_seed)

    def roll_out(self, batch: ContextBatch, seed: int) -> Rollouts:
        vectors, question_vectors = encode(self.encoder, batch.chunks), encode(self.encoder, batch.questions)
        logits = policy_logits(self.policy, batch, vectors, question_vectors)  # (P, C)
        fraction = random.Random(seed).choice(self.settings.expand_fractions)
        budgets = [max(1, expansion_budget(fraction, len(context.chunks))) for context in batch.contexts]
        generator = torch.Generator().manual_seed(seed)
        picks = sample_in_turn(logits, torch.tensor(budgets, device=logits.device), self.settings.group_size, generator)
        rewards, accuracy = self.rewards(batch, vectors, picks)  # (P, G)
        return Rollouts(
            batch=batch,
            chunk_vectors=vectors,
            question_vectors=question_vectors,
            picks=picks,
            log_probabilities=log_probabilities_in_turn(logits, picks),
            advantages=group_advantages(rewards),
            mean_reward=float(rewards.mean()),
            accuracy=accuracy,
        )

    def rewards(self, batch: ContextBatch, vectors: Tensor, picks: Tensor) -> tuple[Tensor, float]:
        """Return minus the answer's log-perplexity under each selection (P, G), and the share of right answers."""
        num_questions, group_size, _ = picks.shape
        examples = []
        for context, first_row, group in zip(
            batch.contexts, first_rows(c.chunks for c in batch.contexts), picks.tolist(), strict=True
        ):
            segments = question_segments(context.questions[0])
            examples += [MixedExample(context.chunks, set(row) - {-1}, segments, first_row) for row in group]
        row_slots = self.settings.row_slots
        mixed = collate_mixed(examples, self.decoder.vocab_size, self.head_ids, row_slots).to(vectors.device)
        prediction = predict(self.decoder, mixed, self.projector(vectors))
        rewards = -prediction.mean_loss_per_example(len(examples)).view(num_questions, group_size)
        return rewards, float(prediction.all_right_per_example(len(examples)).float().mean())

    def improve(self, rollouts: Rollouts) -> Outcome:
        """Return PPO's clipped loss, averaged over all picks."""
        logits = policy_logits(self.policy, rollouts.batch, rollouts.chunk_vectors, rollouts.question_vectors)
        log_probabilities = log_probabilities_in_turn(logits, rollouts.picks)  # (P, G, T)
        loss, clipped = clipped_loss(
            log_probabilities - rollouts.log_probabilities,
            rollouts.advantages,
            rollouts.picks >= 0,
            self.settings.clip_range,
        )
        figures = {
            "loss": loss.item(),
            "reward": rollouts.mean_reward,
            "accuracy": rollouts.accuracy,
            "clipped": clipped,
        }
        return Outcome(loss, figures)


def group_advantages(rewards: Tensor, epsilon: float = 1e-4) -> Tensor:
    """Return each reward less its group's mean, in standard deviations; 0 where all are equal.  (P, G) -> (P, G)"""
    deviation = rewards.std(1, keepdim=True)
    return (rewards - rewards.mean(1, keepdim=True)) / (deviation + epsilon)


def clipped_loss(log_ratios: Tensor, advantages: Tensor, is_pick: Tensor, clip_range: float) -> tuple[Tensor, float]:
    """Return PPO's clipped loss over picks (P, G, T) with advantages (P, G), and the share of picks it clipped."""
    ratios = log_ratios.exp()
    advantages = advantages.unsqueeze(-1)
    clipped = ratios.clamp(1 - clip_range, 1 + clip_range)
    gains = torch.minimum(ratios * advantages, clipped * advantages)
    count = is_pick.sum().clamp(min=1)
    loss = -(gains * is_pick).sum() / count
    return loss, float((((ratios != clipped) & is_pick).sum() / count).detach())
