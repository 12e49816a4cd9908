"""Selection, a stage beside the paper's: the policy learns from labels which chunks hold what the answer needs.

Everything but the policy is frozen and no decoder reads, so each chunk is encoded once, and then a step costs next to
nothing. It is where a policy starts before reinforcement, and all that it needs where labels are good.
"""

import random

import torch
from torch import Tensor

from refrag.model.checkpoint import Checkpoint
from refrag.policies.budget import expansion_budget
from refrag.teacher_forcing.batches import ContextBatch, PolicyBatch, collate_contexts
from refrag.training.memory import VectorMemory
from refrag.training.objective import Objective, Outcome
from refrag.training.settings import Select
from refrag.training.stages.questions import policy_logits, train_policy
from refrag.training.stages.rows import ContextSource

# P (context, question) pairs, C chunks of the longest context

# Recall is logged at serving's default budget.
RECALL_FRACTION = 0.1


class SelectionSource(ContextSource[Select]):
    """Source of questions over passages whose chunks are labelled."""

    def draw(self, rng: random.Random, progress: float) -> ContextBatch:
        chunker = self.draw_chunker(rng)
        contexts = self.draw_contexts(rng, chunker, rng.randint(2, self.settings.max_passages))
        return collate_contexts(chunker, list(contexts), seed=rng.getrandbits(32))


class Selection(Objective):
    """Cross-entropy of the policy against the labels; the policy alone trains."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.encoder = checkpoint.encoder.requires_grad_(False)
        self.policy = checkpoint.require_policy()
        train_policy(self.policy)
        self.memory = VectorMemory(self.encoder)

    def forward(self, batch: ContextBatch, rollout_seed: int | None = None) -> Outcome:
        vectors, question_vectors = self.memory.encode(batch.chunks), self.memory.encode(batch.questions)
        logits = policy_logits(self.policy, batch, vectors, question_vectors)  # (P, C)
        loss, recall = selection_loss(logits, batch.policy)
        return Outcome(loss, {"loss": loss.item(), "recall": recall})


def selection_loss(logits: Tensor, batch: PolicyBatch) -> tuple[Tensor, float]:
    """Return the policy's loss and its recall; questions without evidence count for neither.

    The loss is the cross-entropy of the softmax over chunks against those that hold the evidence. The recall is the
    share of these chunks that the policy ranks within serving's default budget, or first where that is 0.
    """
    counts = batch.evidence.sum(1)
    log_probabilities = logits.log_softmax(-1).masked_fill(batch.passages < 0, 0.0)  # (P, C)
    losses = -(log_probabilities * batch.evidence).sum(1) / counts.clamp(min=1)  # (P,)
    loss = losses.sum() / (counts > 0).sum().clamp(min=1)
    with torch.no_grad():
        num_chunks = (batch.passages >= 0).sum(1)
        budgets = torch.tensor([expansion_budget(RECALL_FRACTION, n) for n in num_chunks.tolist()])
        rank = logits.argsort(-1, descending=True).argsort(-1)
        found = (rank < budgets.clamp(min=1).to(rank.device).unsqueeze(1)) * batch.evidence
    return loss, float(found.sum() / counts.sum().clamp(min=1))
