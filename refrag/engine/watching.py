"""Reads the attention weights of a sequence's rows on some of its slots, while a step computes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from refrag.engine.attention import Heads, Span, causal_mask, joined, softmax

# R rows of one sequence, L slots that they see, W width of a key, N heads that are read in a layer, C slots that their
# weights are read on


@dataclass
class WeightSums:
    """Sums, over the rows of the latest pass, of the weights that heads give to slots.

    heads: query heads by layer. slots (C,): of the sequence. first_row: slot of the first row that counts; all after it
        do. seen: by layer, (N, C); empty before the first row that counts.
    """

    heads: Mapping[int, Sequence[int]]
    slots: Tensor
    first_row: int
    seen: dict[int, Tensor] = field(default_factory=dict)

    def see(self, heads: Heads, span: Span, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        first = max(0, self.first_row - span.num_past)
        if heads.layer not in self.heads or first >= span.num_rows:
            return
        numbers = torch.tensor(self.heads[heads.layer], device=heads.query.device)
        keys = joined(pairs)[0]
        # Softmax in half precision would lose what is small.
        dtype = torch.promote_types(keys.dtype, torch.float32)
        query = (heads.query[numbers, span.rows][:, first:] * heads.scaling).to(dtype)  # (N, R, W)
        keys = keys[numbers // (len(heads.query) // len(keys))].to(dtype)  # (N, L, W)
        mask = causal_mask(span, keys.shape[1], heads.sliding_window, query.device)[first:]
        weights = softmax(torch.bmm(query, keys.transpose(1, 2)), heads.softcap, mask)  # (N, R, L)
        self.seen[heads.layer] = weights[..., self.slots.to(query.device)].sum(1)
