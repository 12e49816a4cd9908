"""Fidelity: how closely a decoder's next-token distributions follow the plain decoder's, for which no label is needed.

Both read the same answer, the one that the plain decoder gives greedily, token by token. The divergence is over the
plain decoder's likeliest tokens, and all others as one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# T tokens of the plain decoder's answer, V vocabulary size, N likeliest tokens

NUM_LIKELIEST = 50
# Of all other tokens together: where the likeliest hold everything, rounding could leave less than nothing.
MIN_REST = 1e-9


@dataclass(frozen=True)
class PlainDistribution:
    """The plain decoder's distribution before each token of its answer.

    likeliest_ids: (T, N), the likeliest first. log_probabilities: (T, N + 1), the last of all other tokens together.
    """

    likeliest_ids: Tensor
    log_probabilities: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> "PlainDistribution":
        """Return the distribution of these logits.  (T, V) -> (T, N), (T, N + 1)"""
        likeliest = logits.topk(min(NUM_LIKELIEST, logits.shape[-1])).indices
        return cls(likeliest, _log_probabilities(logits, likeliest))


@dataclass(frozen=True)
class Fidelity:
    """divergence: mean KL(plain ‖ other) in nats. agreement: share of the tokens with the same likeliest one."""

    divergence: float
    agreement: float


def compare_with_plain(plain: PlainDistribution, logits: Tensor) -> Fidelity:
    """Return the fidelity of another decoder's logits before the same tokens, (T, V)."""
    others = _log_probabilities(logits, plain.likeliest_ids)
    divergences = (plain.log_probabilities.exp() * (plain.log_probabilities - others)).sum(-1)  # (T,)
    agreement = (logits.argmax(-1) == plain.likeliest_ids[:, 0]).float().mean()
    return Fidelity(max(0.0, float(divergences.mean())), float(agreement))


def _log_probabilities(logits: Tensor, chosen: Tensor) -> Tensor:
    """Return those of the chosen tokens, and of the rest together.  (T, V), (T, N) -> (T, N + 1)"""
    logs = logits.double().log_softmax(-1).gather(-1, chosen)
    rest = (1 - logs.exp().sum(-1, keepdim=True)).clamp(min=MIN_REST).log()
    return torch.cat([logs, rest], -1)
