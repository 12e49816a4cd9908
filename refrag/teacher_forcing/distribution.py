"""Next-token distributions cut to their likeliest tokens and one for all others: small enough to keep for every token.

Nothing is left out: what the likeliest tokens lack to one is a probability of its own, so that the divergence from
another distribution cannot be lowered by moving probability among the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refrag.teacher_forcing.movable import Movable

# T tokens, V vocabulary size, N likeliest tokens

NUM_LIKELIEST = 50
# Of all other tokens together: where the likeliest hold everything, rounding could leave less than nothing.
MIN_REST = 1e-9


@dataclass(frozen=True)
class TopDistribution(Movable):
    """Distributions before each of T tokens.

    likeliest_ids: (T, N), the likeliest first. log_probabilities: (T, N + 1), the last of all other tokens together.
    """

    likeliest_ids: Tensor
    log_probabilities: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> "TopDistribution":
        """Return the distribution of these logits.  (T, V) -> (T, N), (T, N + 1)"""
        likeliest = logits.topk(min(NUM_LIKELIEST, logits.shape[-1])).indices
        return cls(likeliest, _log_probabilities(logits, likeliest))

    @classmethod
    def joined(cls, parts: Sequence["TopDistribution"]) -> "TopDistribution":
        """Return those of all parts, one after another."""
        ids, logs = zip(*((part.likeliest_ids, part.log_probabilities) for part in parts), strict=True)
        return cls(torch.cat(ids), torch.cat(logs))

    def __len__(self) -> int:
        return len(self.likeliest_ids)

    def divergences(self, logits: Tensor) -> Tensor:
        """Return KL(this ‖ other) in nats before each token, for the other's logits.  (T, V) -> (T,)"""
        others = _log_probabilities(logits, self.likeliest_ids)
        own = self.log_probabilities.to(others.dtype)
        return (own.exp() * (own - others)).sum(-1)

    def select(self, rows: Tensor) -> "TopDistribution":
        """Return the distributions before these tokens alone.  (R,)"""
        return TopDistribution(self.likeliest_ids[rows], self.log_probabilities[rows])


def _log_probabilities(logits: Tensor, chosen: Tensor) -> Tensor:
    """Return those of the chosen tokens, and of the rest together.  (T, V), (T, N) -> (T, N + 1)"""
    logs = logits.double().log_softmax(-1).gather(-1, chosen)
    rest = (1 - logs.exp().sum(-1, keepdim=True)).clamp(min=MIN_REST).log()
    return torch.cat([logs, rest], -1)
