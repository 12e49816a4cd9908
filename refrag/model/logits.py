"""Scales and bounds a decoder's logits as its family does behind the output matrix, by what its config says."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MULTIPLIERS = ("logit_scale", "lm_head_multiplier")
DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
BOUNDS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
# These multiply by what is a divisor in every other family.
MULTIPLYING_TYPES = {"hyperclovax"}


@dataclass(frozen=True)
class LogitScale:
    """A change to the output matrix's products: they are multiplied by `factor`, then softly bounded.

    bound: no logit is larger, positive or negative; None for no bound.
    """

    factor: float = 1.0
    bound: float | None = None

    @classmethod
    def of(cls, config: Any) -> "LogitScale":
        multiplies = getattr(config, "model_type", None) in MULTIPLYING_TYPES
        factor = 1.0
        for name in (*MULTIPLIERS, *DIVISORS):
            value = getattr(config, name, None)
            if value is not None:
                factor *= value if multiplies or name in MULTIPLIERS else 1 / value
        bounds = [getattr(config, name, None) for name in BOUNDS]
        return cls(factor, next((bound for bound in bounds if bound is not None), None))

    def apply(self, logits: Tensor) -> Tensor:
        if self.factor != 1.0:
            logits = logits * self.factor
        return logits if self.bound is None else self.bound * torch.tanh(logits / self.bound)
