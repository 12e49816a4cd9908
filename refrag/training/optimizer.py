"""Optimizers: AdamW as in the paper, or Muon for the matrices inside the networks and AdamW for the rest.

A decoder trained from scratch on a CPU learns to copy from its context on several times fewer tokens with Muon.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from refrag.errors import TrainingError
from refrag.training.settings import Optimisation, Part

BETAS = (0.9, 0.95)
# Keller Jordan's quintic: steep at zero, so that five steps bring every singular value near one.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
# Key of a group of parameters for the peak of its learning rate.
PEAK = "peak_learning_rate"


def make_optimizer(objective: nn.Module, optimisation: Optimisation) -> torch.optim.Optimizer:
    """Return the optimizer of all that trains in `objective`; only matrices inside the networks have weight decay."""
    learning_rate, weight_decay = optimisation.learning_rate, optimisation.weight_decay
    if optimisation.optimizer == "muon":
        return Muon(*_split(objective), learning_rate, weight_decay)
    groups: list[dict[str, Any]] = []
    for part, peak in _parts(objective, optimisation):
        matrices, others = _split(part)
        groups.append({"params": matrices, "weight_decay": weight_decay, PEAK: peak})
        groups.append({"params": others, "weight_decay": 0.0, PEAK: peak})
    return torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS)


def set_learning_rate(optimizer: torch.optim.Optimizer, optimisation: Optimisation, factor: float) -> None:
    """Give each group of parameters this share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group.get(PEAK, optimisation.learning_rate) * factor


def learning_rate_factor(progress: float, warmup: float = 0.04, floor: float = 0.02) -> float:
    """Return the share of the peak learning rate at `progress`, which runs from 0 to 1 (paper, appendix).

    It rises linearly over the `warmup` share of the progress, then falls as a cosine to `floor`.
    """
    if progress < warmup:
        return max(progress, 1e-3) / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` with `match_rms_adamw` for `matrices`, and AdamW for `others`, as one optimizer.

    Unlike torch's Muon, it orthogonalises all matrices of one shape as one batch, and on a CPU, where bfloat16 has no
    fast product, in float32. There torch's takes a quarter of a small model's training step.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        others: list[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = BETAS,
        eps: float = 1e-8,
    ) -> None:
        orthogonal = {"params": matrices, "orthogonal": True, "weight_decay": weight_decay, "momentum": momentum}
        adaptive = {"params": others, "orthogonal": False, "weight_decay": 0.0, "betas": betas, "eps": eps}
        super().__init__([orthogonal, adaptive], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            (self._orthogonal_step if group["orthogonal"] else self._adaptive_step)(parameters, group)

    def _orthogonal_step(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        directions = orthogonalise([self._nesterov(matrix, group["momentum"]) for matrix in matrices])
        for matrix, direction in zip(matrices, directions, strict=True):
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            # The factor gives the update the root mean square of AdamW's, so that one learning rate serves both.
            matrix.add_(direction, alpha=-group["lr"] * 0.2 * math.sqrt(max(matrix.shape)))

    def _nesterov(self, matrix: Tensor, momentum: float) -> Tensor:
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        state["momentum"].lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(state["momentum"], momentum)

    def _adaptive_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        (beta1, beta2), rate = group["betas"], group["lr"]
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if not state:
                state.update(step=0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
            state["step"] += 1
            state["mean"].lerp_(parameter.grad, 1 - beta1)
            state["square"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
            scale = (state["square"] / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
            parameter.mul_(1 - rate * group["weight_decay"])
            parameter.addcdiv_(state["mean"], scale, value=-rate / (1 - beta1 ** state["step"]))


def orthogonalise(matrices: list[Tensor]) -> list[Tensor]:
    """Return each matrix with its singular values pushed to about one; equal shapes are computed as one batch."""
    batches: dict[tuple[int, ...], list[int]] = defaultdict(list)
    # The products are as large as the rows squared, so tall matrices are transposed first.
    lying = [matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix for matrix in matrices]
    for number, matrix in enumerate(lying):
        batches[tuple(matrix.shape)].append(number)
    for numbers in batches.values():
        batch = _newton_schulz(torch.stack([lying[number] for number in numbers]))
        for number, matrix in zip(numbers, batch, strict=True):
            lying[number] = matrix
    return [
        result.mT if matrix.shape[0] > matrix.shape[1] else result
        for matrix, result in zip(matrices, lying, strict=True)
    ]


def _parts(objective: nn.Module, optimisation: Optimisation) -> list[tuple[nn.Module, float]]:
    """Return the parts with a learning rate of their own, each with its peak, or the whole with the one for all."""
    rates = optimisation.part_learning_rates
    if not rates:
        return [(objective, optimisation.learning_rate)]
    parts = dict(objective.named_children())
    if unknown := sorted(set(rates) - set(parts)):
        raise TrainingError(f"part_learning_rates names {unknown}; the stage has the parts {sorted(parts)}")
    return [(part, rates.get(cast(Part, name), optimisation.learning_rate)) for name, part in parts.items()]


def _newton_schulz(batch: Tensor) -> Tensor:
    a, b, c = NEWTON_SCHULZ
    x = batch.bfloat16() if batch.is_cuda else batch.float()  # (N, R, C), R <= C
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT  # (N, R, R)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(batch.dtype)


def _split(objective: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the trainable matrices inside the networks, and the rest: embeddings, output heads, vectors, scalars."""
    ends = {id(weight) for module in objective.modules() if (weight := _vocabulary_weight(module)) is not None}
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in objective.parameters():
        if parameter.requires_grad:
            is_inner = parameter.ndim == 2 and min(parameter.shape) > 1 and id(parameter) not in ends
            (matrices if is_inner else others).append(parameter)
    return matrices, others


def _vocabulary_weight(module: nn.Module) -> Tensor | None:
    if isinstance(module, PreTrainedModel):
        return getattr(module.get_output_embeddings(), "weight", None)
    return module.weight if isinstance(module, nn.Embedding) else None
