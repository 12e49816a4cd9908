"""Speeds up linear layers on a CPU, for one row up to as many as a prompt has.

torch multiplies by weights in the order in which they are stored; with few rows that is far below what the CPU can do.
GFLOP/s measured on two x86 cores, for 512 inputs and 1,376 outputs:

    rows              1    4    8   16   32  256
    as stored        24   40   78  114  146  194
    packed           38  122  158  186  205  222

"""

import torch
from torch import Tensor, nn

# Fewest weights for which packing pays; in smaller layers calling oneDNN costs more than it saves.
PACKED = 2**17
# Numbers of rows for which smaller layers are faster as (W xᵀ)ᵀ.
FEWEST_ROWS, MOST_ROWS = 16, 48


class PackedLinear(nn.Linear):
    """A linear layer with weights in the order in which oneDNN reads them.  (…, D) -> (…, F)

    They are held in that order alone, except for weights shared with the token embeddings, which keep a copy of theirs.
    `weight` keeps its shape and type but takes no memory and is NaN throughout, so that code that still reads it shows.
    """

    packed: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], "")


class FewRowsLinear(nn.Linear):
    """A linear layer that computes (W xᵀ)ᵀ where that is faster.  (…, D) -> (…, F)"""

    def forward(self, input: Tensor) -> Tensor:
        rows = input.flatten(0, -2)
        if not FEWEST_ROWS <= rows.shape[0] <= MOST_ROWS:
            return super().forward(input)
        # Not made contiguous, since the next product is faster with this layout.
        output = torch.mm(self.weight, rows.t()).t()
        if self.bias is not None:
            output = output + self.bias
        return output.unflatten(0, input.shape[:-1])


@torch.no_grad()
def speed_up_linear(module: nn.Module) -> None:
    """Change every plain linear layer of the module, in place, into one of the faster kinds above.

    Results are the same up to rounding. The module can no longer be trained or saved.
    """
    can_pack = torch.backends.mkldnn.is_available()
    for layer in module.modules():
        if type(layer) is not nn.Linear:
            continue
        if layer.weight.numel() < PACKED:
            layer.__class__ = FewRowsLinear
        elif can_pack and layer.weight.dtype == torch.float32:
            _pack(layer)


def restore_layout(module: nn.Module) -> None:
    """Change small layers back, for a family that reads their outputs as if they were contiguous."""
    for layer in module.modules():
        if type(layer) is FewRowsLinear:
            layer.__class__ = nn.Linear  # type: ignore[assignment]


def _pack(layer: nn.Linear) -> None:
    # Inductor's own operators, because torch's public ones pack again at every call or need tensors of another layout.
    packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)
    nothing = layer.weight.new_full((), float("nan")).expand(layer.weight.shape)
    layer.__class__ = PackedLinear
    layer.packed = packed
    layer.weight = nn.Parameter(nothing, requires_grad=False)
