"""Fidelity: how closely a decoder's next-token distributions follow the plain decoder's, for which no label is needed.

Both read the same answer, the one that the plain decoder gives greedily, token by token.
"""

from dataclasses import dataclass

from torch import Tensor

from refrag.teacher_forcing.distribution import TopDistribution

# T tokens of the plain decoder's answer, V vocabulary size


@dataclass(frozen=True)
class Fidelity:
    """divergence: mean KL(plain ‖ other) in nats. agreement: share of the tokens with the same likeliest one."""

    divergence: float
    agreement: float


def compare_with_plain(plain: TopDistribution, logits: Tensor) -> Fidelity:
    """Return the fidelity of another decoder's logits before the same tokens, (T, V)."""
    agreement = (logits.argmax(-1) == plain.likeliest_ids[:, 0]).float().mean()
    return Fidelity(max(0.0, float(plain.divergences(logits).mean())), float(agreement))
