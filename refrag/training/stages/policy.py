"""Reinforcement of the expansion policy (paper §3 and appendix): GRPO, with everything but the policy frozen.

For each question a group of selections is sampled, chunk after chunk from the masked softmax. The reward of a
selection is minus the log-perplexity of the true answer, given the prompt with just its chunks expanded. The
advantage compares a reward with those of its group; all picks of a selection share it in a PPO-clipped loss. The
paper gives no group size, clip range or learning rate; `settings.Policy` and the presets have ours.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from refrag.data.contexts import TokenisedContext
from refrag.model.policy import log_probabilities_in_turn, sample_in_turn
from refrag.policies.budget import expansion_budget
from refrag.teacher_forcing.batches import ContextBatch
from refrag.training.objective import Outcome
from refrag.training.settings import Policy
from refrag.training.stages.rewards import EncodedContexts, RewardedPolicy, RewardedSource

# P questions, C chunks of the longest context, G selections per question, T picks of the largest budget,
# N chunks of the batch, E encoder width


@dataclass(frozen=True)
class Rollouts(EncodedContexts):
    """Contexts with sampled selections and their advantages."""

    picks: Tensor  # (P, G, T), −1 beyond the budget
    log_probabilities: Tensor  # (P, G, T) of each pick when it was sampled
    advantages: Tensor  # (P, G)
    mean_reward: float
    accuracy: float


class PolicySource(RewardedSource[Policy]):
    """Source of questions, each over passages of its own; all tasks are equally likely."""

    def num_slots(self, context: TokenisedContext, chunk_size: int) -> int:
        budget = expansion_budget(max(self.settings.expand_fractions), len(context.chunks))
        return self.settings.group_size * (len(context.chunks) + budget * chunk_size)


class PolicyOptimisation(RewardedPolicy[Policy]):
    """Clipped loss of the policy over sampled selections; the policy alone trains."""

    def roll_out(self, batch: ContextBatch, seed: int) -> Rollouts:
        contexts = self.encode(batch)
        logits = self.scores(contexts)  # (P, C)
        fraction = random.Random(seed).choice(self.settings.expand_fractions)
        budgets = [max(1, expansion_budget(fraction, len(context.chunks))) for context in batch.contexts]
        generator = torch.Generator().manual_seed(seed)
        picks = sample_in_turn(logits, torch.tensor(budgets, device=logits.device), self.settings.group_size, generator)
        rewards, accuracy = self.rewards(batch, contexts.chunk_vectors, picks)  # (P, G)
        return Rollouts(
            batch=batch,
            chunk_vectors=contexts.chunk_vectors,
            question_vectors=contexts.question_vectors,
            picks=picks,
            log_probabilities=log_probabilities_in_turn(logits, picks),
            advantages=group_advantages(rewards),
            mean_reward=float(rewards.mean()),
            accuracy=accuracy,
        )

    def improve(self, rollouts: Rollouts) -> Outcome:
        """Return PPO's clipped loss, averaged over all picks."""
        log_probabilities = log_probabilities_in_turn(self.scores(rollouts), rollouts.picks)  # (P, G, T)
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
