"""Linear layers for steps of a few rows, on a CPU: as many as requests decode together."""

import torch
from torch import Tensor, nn

# Measured on x86 with MKL: for so many rows torch multiplies rows by weights at down to half the speed at which it
# multiplies weights by rows; for fewer or more it is the other way round. With large weights it begins sooner.
FEWEST_ROWS, MOST_ROWS = 16, 48
FEWEST_ROWS_LARGE, LARGE = 8, 2**19


class FewRowsLinear(nn.Linear):
    """The same product, taken as (W xᵀ)ᵀ where that is faster.  (…, D) -> (…, F)"""

    def forward(self, input: Tensor) -> Tensor:
        rows = input.flatten(0, -2)
        fewest = FEWEST_ROWS_LARGE if self.weight.numel() >= LARGE else FEWEST_ROWS
        if not fewest <= rows.shape[0] <= MOST_ROWS:
            return super().forward(input)
        # Left as it lies in memory: the next product wants it so again.
        output = torch.mm(self.weight, rows.t()).t()
        if self.bias is not None:
            output = output + self.bias
        return output.unflatten(0, input.shape[:-1])


def use_few_rows_linear(module: nn.Module) -> None:
    """Let every plain linear layer of the module compute so; weights and results stay what they are."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = FewRowsLinear
