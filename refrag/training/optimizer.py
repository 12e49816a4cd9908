"""Muon for the matrices inside the networks, AdamW for everything else.

The paper trains with AdamW. From scratch on a CPU Muon needs several times fewer tokens until the decoder
copies from its context, and there is no pretrained decoder to start from here.
"""

import math
from collections.abc import Iterable

import torch
from torch import nn


def make_optimizers(modules: Iterable[nn.Module], learning_rate: float) -> list[torch.optim.Optimizer]:
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in modules:
        embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
        for parameter in module.parameters():
            if parameter.requires_grad:
                is_matrix = parameter.ndim == 2 and min(parameter.shape) > 1 and id(parameter) not in embeddings
                (matrices if is_matrix else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate_factor(progress: float, warmup: float = 0.04, floor: float = 0.02) -> float:
    """Linear warm-up, then a cosine down to `floor`; `progress` runs from 0 to 1 (paper, appendix)."""
    if progress < warmup:
        return max(progress, 1e-3) / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
