"""The KV cache's tensors: keys and values of every slot of the pool, for each layer, allocated once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refrag.engine.block_pool import Run

# H key-value heads, P slots of the pool, T rows of a step, L slots of one sequence, W width of a key or of a value


@dataclass(frozen=True)
class LayerShape:
    """The shape of one layer's keys and values.

    num_heads: key-value heads, fewer than query heads if queries are grouped.
    key_width, value_width: of one head; they differ where keys have a part that holds positions alone.
    """

    num_heads: int
    key_width: int
    value_width: int


class KVCache:
    """Keys and values of each layer, (H, P, W)."""

    def __init__(self, shapes: Sequence[LayerShape], num_slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self.num_slots = num_slots
        self.keys = [_committed((each.num_heads, num_slots, each.key_width), dtype, device) for each in shapes]
        self.values = [_committed((each.num_heads, num_slots, each.value_width), dtype, device) for each in shapes]

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store the rows' keys and values (H, T, W) in the slots (T,)."""
        self.keys[layer].index_copy_(1, slots, keys)
        self.values[layer].index_copy_(1, slots, values)

    def write_runs(self, layer: int, runs: Sequence[Run], keys: Tensor, values: Tensor) -> None:
        """Store the rows' keys and values (H, T, W) in runs of slots, which is faster if the runs are few and long."""
        lengths = [stop - start for start, stop in runs]
        parts = zip(self.read(layer, runs), keys.split(lengths, 1), values.split(lengths, 1), strict=True)
        for (stored_keys, stored_values), run_keys, run_values in parts:
            stored_keys.copy_(run_keys)
            stored_values.copy_(run_values)

    def read(self, layer: int, runs: Sequence[Run]) -> list[tuple[Tensor, Tensor]]:
        """Return keys and values (H, L, W) of each run of slots, as views."""
        keys, values = self.keys[layer], self.values[layer]
        return [(keys[:, start:stop], values[:, start:stop]) for start, stop in runs]

    def clear(self, runs: Sequence[Run]) -> None:
        """Zero the keys and values of these slots in every layer."""
        for layer in range(len(self.keys)):
            for keys, values in self.read(layer, runs):
                keys.zero_()
                values.zero_()


def bytes_per_slot(shapes: Sequence[LayerShape], dtype: torch.dtype) -> int:
    """Return the bytes that one slot's keys and values take over all layers."""
    return dtype.itemsize * sum(shape.num_heads * (shape.key_width + shape.value_width) for shape in shapes)


def _committed(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    # torch.zeros gets memory from the system only when it is written to. Filled here, a budget that the machine
    # does not have fails at start and not under load.
    return torch.empty(shape, dtype=dtype, device=device).fill_(0)
