"""Linear layers on a CPU, for the steps of an engine: from one row to as many as a prompt has.

torch multiplies by weights as they lie in memory, and with few rows is far from what the CPU can do. Measured on x86,
GFLOP/s of 512 inputs and 1,376 outputs on two cores:

    rows              1    4    8   16   32  256
    as they lie      24   40   78  114  146  194
    packed           38  122  158  186  205  222

"""

import torch
from torch import Tensor, nn

# Weights from which packing pays; below, what it costs to call oneDNN is more than it saves.
PACKED = 2**17
# Of smaller ones, so many rows go faster as (W xᵀ)ᵀ.
FEWEST_ROWS, MOST_ROWS = 16, 48


class PackedLinear(nn.Linear):
    """The same product, by weights in the order in which oneDNN reads them.  (…, D) -> (…, F)

    They are held in that order alone, but for those that the token embeddings share, which keep their own: `weight`
    keeps its shape and type, takes no memory and is NaN throughout, so that whoever reads it after all is found out.
    """

    packed: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], "")


class FewRowsLinear(nn.Linear):
    """The same product, taken as (W xᵀ)ᵀ where that is faster.  (…, D) -> (…, F)"""

    def forward(self, input: Tensor) -> Tensor:
        rows = input.flatten(0, -2)
        if not FEWEST_ROWS <= rows.shape[0] <= MOST_ROWS:
            return super().forward(input)
        # Left as it lies in memory: the next product wants it so again.
        output = torch.mm(self.weight, rows.t()).t()
        if self.bias is not None:
            output = output + self.bias
        return output.unflatten(0, input.shape[:-1])


@torch.no_grad()
def speed_up_linear(module: nn.Module) -> None:
    """Let every plain linear layer of the module compute so. Results stay what they are, but for rounding; the module
    can be neither trained nor saved any more.
    """
    can_pack = torch.backends.mkldnn.is_available()
    for layer in module.modules():
        if type(layer) is not nn.Linear:
            continue
        if layer.weight.numel() < PACKED:
            layer.__class__ = FewRowsLinear
        elif can_pack and layer.weight.dtype == torch.float32:
            _pack(layer)


def _pack(layer: nn.Linear) -> None:
    # Inductor's own operators: torch's public ones pack anew with every call, or take tensors of another layout.
    packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)
    nothing = layer.weight.new_full((), float("nan")).expand(layer.weight.shape)
    layer.__class__ = PackedLinear
    layer.packed = packed
    layer.weight = nn.Parameter(nothing, requires_grad=False)
