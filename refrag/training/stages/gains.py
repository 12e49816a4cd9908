"""Gains, a stage beside the paper's: the policy learns what expanding one chunk gains, with all else frozen.

For each question the decoder reads the prompt with nothing expanded, and then with one of several candidates expanded
at a time. The gain of a candidate is what that takes off the true answer's log-perplexity. The policy's softmax over
the candidates learns the softmax of their gains. Where GRPO compares sampled selections, this sees each chunk by
itself: it is dense, without sampling noise, and needs no label but the answer.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from refrag.data.contexts import TokenisedContext
from refrag.teacher_forcing.batches import ContextBatch
from refrag.training.objective import Outcome
from refrag.training.settings import Gains
from refrag.training.stages.rewards import EncodedContexts, RewardedPolicy, RewardedSource

# P questions, C chunks of the longest context, G candidates per question, N chunks of the batch, E encoder width


@dataclass(frozen=True)
class WeighedChunks(EncodedContexts):
    """Contexts with candidates for expansion and their gains."""

    candidates: Tensor  # (P, G) numbers of chunks, −1 where the context has fewer
    gains: Tensor  # (P, G) in nats per token


class GainSource(RewardedSource[Gains]):
    """Source of questions, each over passages of its own."""

    def num_slots(self, context: TokenisedContext, chunk_size: int) -> int:
        num_prompts = 1 + min(self.settings.num_candidates, len(context.chunks))
        return num_prompts * (len(context.chunks) + chunk_size)


class GainLearning(RewardedPolicy[Gains]):
    """Divergence of the policy over the candidates from the softmax of their gains; the policy alone trains."""

    def roll_out(self, batch: ContextBatch, seed: int) -> WeighedChunks:
        """Choose candidates and let the decoder tell what each gains."""
        contexts = self.encode(batch)
        vectors, logits = contexts.chunk_vectors, self.scores(contexts)  # (N, E), (P, C)
        rng, count = random.Random(seed), self.settings.num_candidates
        chosen = [
            choose_candidates(rng, row[: len(context.chunks)], context.questions[0].evidence_chunks, count)
            for row, context in zip(logits, batch.contexts, strict=True)
        ]
        width = max(map(len, chosen))
        candidates = torch.tensor([row + [-1] * (width - len(row)) for row in chosen], device=vectors.device)  # (P, G)
        nothing = torch.full_like(candidates[:, :1], -1)
        rewards, _ = self.rewards(batch, vectors, torch.cat([nothing, candidates], 1).unsqueeze(-1))  # (P, 1 + G)
        return WeighedChunks(batch, vectors, contexts.question_vectors, candidates, rewards[:, 1:] - rewards[:, :1])

    def improve(self, weighed: WeighedChunks) -> Outcome:
        loss, gain = gain_loss(self.scores(weighed), weighed.candidates, weighed.gains, self.settings.temperature)
        return Outcome(loss, {"loss": loss.item(), "gain": gain})


def choose_candidates(rng: random.Random, logits: Tensor, evidence: list[int], count: int) -> list[int]:
    """Return up to `count` different chunks: half the policy's likeliest, then some with evidence, the rest at random.

    logits (C,).
    """
    likeliest = logits.argsort(descending=True).tolist()
    others = rng.sample(range(len(likeliest)), len(likeliest))
    wanted = [*likeliest[: count // 2], *evidence[: max(1, count // 4)], *others]
    return list(dict.fromkeys(wanted))[:count]


def gain_loss(logits: Tensor, candidates: Tensor, gains: Tensor, temperature: float) -> tuple[Tensor, float]:
    """Return KL(softmax(gains / temperature) ‖ policy over the candidates), and the mean gain of its likeliest one.

    logits (P, C), candidates and gains (P, G).
    """
    is_missing = candidates < 0
    lowest = torch.finfo(logits.dtype).min
    scores = logits.gather(1, candidates.clamp(min=0)).masked_fill(is_missing, lowest)  # (P, G)
    wanted = (gains / temperature).masked_fill(is_missing, lowest).log_softmax(-1)
    divergences = (wanted.exp() * (wanted - scores.log_softmax(-1))).masked_fill(is_missing, 0.0).sum(-1)
    chosen = gains.gather(1, scores.argmax(-1, keepdim=True))
    return divergences.mean(), float(chosen.mean())
