"""Decoding on a GPU: one row of each running answer, in one pass that is recorded once and replayed.

A decoding step is too small to keep a GPU busy while Python issues its thousands of kernels. So the pass is recorded
as a CUDA graph for 1, 2, 4, … rows, over tensors that stay where they are and are filled before each replay; and each
layer reads the blocks of all rows in one kernel (flex attention, whose mask finds a slot's position by block table):

    blocks of the pool     . b b . a a a . c          rows     a   b   c
    position of a           – – – – 0 1 2 – –         tables   456 12  8
"""

import bisect
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from refrag.engine.attention import PAGED_ATTENTION, Heads
from refrag.engine.block_pool import Run
from refrag.engine.kv_cache import KVCache
from refrag.model.decoder import Decoder

# B rows, N blocks of the cache, D decoder width, V vocabulary size; H, K, W, P as in attention and kv_cache

# A pass → the same pass over the same tensors, as often as it is called; it returns its one output anew.
Recorder = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
# Rows of a query that flex attention handles together; a decoding row is alone.
QUERY_BLOCK = 128
NOWHERE = -1


@dataclass(frozen=True)
class Row:
    """The last slot of one sequence; `runs` hold all its slots."""

    runs: Sequence[Run]
    position: int


class DecodeGraphs:
    """One recorded pass for each of a few numbers of rows; a step takes the next larger, and fills up with rows that
    read and write the cache's last block, which is nobody's.
    """

    def __init__(
        self, decoder: Decoder, cache: KVCache, block_size: int, max_rows: int, recorder: Recorder | None = None
    ) -> None:
        sizes = [2**power for power in range(max_rows.bit_length()) if 2**power < max_rows] + [max_rows]
        record = recorder or record_cuda_graph
        # The largest first, so that the others fit into the memory that it took.
        self.graphs = {size: _DecodeGraph(decoder, cache, block_size, size, record) for size in reversed(sizes)}
        self.sizes = sizes

    def run(self, embeddings: Tensor, rows: Sequence[Row]) -> Tensor:
        """The logits after each row.  (B, D), B rows -> (B, V)"""
        size = self.sizes[bisect.bisect_left(self.sizes, len(rows))]
        return self.graphs[size].run(embeddings, rows)


class _DecodeGraph:
    def __init__(self, decoder: Decoder, cache: KVCache, block_size: int, num_rows: int, record: Recorder) -> None:
        weight = decoder.token_embeddings.weight
        num_blocks = cache.num_slots // block_size
        self.idle = Row([(cache.num_slots - block_size, cache.num_slots)], 0)
        self.embeddings = torch.zeros(num_rows, decoder.width, dtype=weight.dtype, device=weight.device)
        self.step = TableStep(cache, block_size, _long(num_rows, weight), BlockTables(num_rows, num_blocks, weight))
        self.runs: list[Sequence[Run]] = [()] * num_rows
        self._fill([])

        def compute() -> Tensor:
            positions = self.step.positions
            states = decoder.read_with(PAGED_ATTENTION, self.embeddings, positions, step=self.step)
            return decoder.logits(states)

        self.replay = record(compute)

    def run(self, embeddings: Tensor, rows: Sequence[Row]) -> Tensor:
        self.embeddings[: len(rows)] = embeddings
        self._fill(rows)
        return self.replay()[: len(rows)]

    def _fill(self, rows: Sequence[Row]) -> None:
        """A sequence keeps its blocks while it runs, so that a table is written when a row changes hands."""
        filled = [*rows, *[self.idle] * (len(self.runs) - len(rows))]
        for index, row in enumerate(filled):
            if self.runs[index] != row.runs:
                self.runs[index] = row.runs
                self.step.tables.write(index, row.runs, self.step.block_size)
        positions = [row.position for row in filled]
        slots = [_slot(row) for row in filled]
        self.step.positions.copy_(torch.tensor(positions))
        self.step.slots.copy_(torch.tensor(slots))


class BlockTables:
    """counts (B, 1, 1), indices (B, 1, 1, N): the blocks of each row, in flex attention's form. firsts (B, N): the
    position of each block's first slot in the row's sequence, NOWHERE for blocks that are not the row's.
    """

    def __init__(self, num_rows: int, num_blocks: int, like: Tensor) -> None:
        self.counts = torch.zeros(num_rows, 1, 1, dtype=torch.int32, device=like.device)
        self.indices = torch.zeros(num_rows, 1, 1, num_blocks, dtype=torch.int32, device=like.device)
        self.firsts = torch.full((num_rows, num_blocks), NOWHERE, dtype=torch.int32, device=like.device)

    def write(self, row: int, runs: Sequence[Run], block_size: int) -> None:
        """Of a row whose slots lie in these runs of whole blocks."""
        blocks = torch.tensor([slot // block_size for start, stop in runs for slot in range(start, stop, block_size)])
        self.counts[row] = len(blocks)
        self.indices[row, 0, 0, : len(blocks)] = blocks.to(self.indices)
        firsts = torch.full((self.firsts.shape[1],), NOWHERE, dtype=torch.int32)
        firsts[blocks] = torch.arange(len(blocks), dtype=torch.int32) * block_size
        self.firsts[row] = firsts.to(self.firsts)


@dataclass
class TableStep:
    """slots, positions (B,): where in the pool and in its sequence each row is."""

    cache: KVCache
    block_size: int
    slots: Tensor
    tables: BlockTables
    positions: Tensor = field(init=False)
    masks: dict[int | None, BlockMask] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.positions = torch.zeros_like(self.slots)

    def attend(self, heads: Heads) -> Tensor:
        """Each row over its sequence's slots.  -> (B, H, W)"""
        self.cache.write(heads.layer, self.slots, heads.key, heads.value)
        [(keys, values)] = self.cache.read(heads.layer, [(0, self.cache.num_slots)])  # (K, P, W)
        num_rows, num_groups = heads.query.shape[1], heads.key.shape[0]
        attend: Any = _compiled_attention() if heads.query.is_cuda else flex_attention
        output = attend(
            heads.query.transpose(0, 1).unsqueeze(2),  # (B, H, 1, W)
            keys.expand(num_rows, -1, -1, -1),
            values.expand(num_rows, -1, -1, -1),
            score_mod=_soft_cap(heads.softcap),
            block_mask=self._mask(heads.sliding_window),
            scale=heads.scaling,
            enable_gqa=heads.query.shape[0] > num_groups,
        )
        return output[:, :, 0]

    def _mask(self, sliding_window: int | None) -> BlockMask:
        """Made once for all layers of the same window, and for all steps: it reads the tensors as they are then."""
        if sliding_window not in self.masks:
            self.masks[sliding_window] = BlockMask.from_kv_blocks(
                self.tables.counts,
                self.tables.indices,
                BLOCK_SIZE=(QUERY_BLOCK, self.block_size),
                mask_mod=self._visible(sliding_window),
                seq_lengths=(1, self.cache.num_slots),
                compute_q_blocks=False,
            )
        return self.masks[sliding_window]

    def _visible(self, sliding_window: int | None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        firsts, last, block_size = self.tables.firsts, self.positions, self.block_size

        def is_visible(row: Tensor, head: Tensor, query: Tensor, slot: Tensor) -> Tensor:
            first = firsts[row, slot // block_size]
            position = first + slot % block_size
            visible = (first != NOWHERE) & (position <= last[row])
            return visible if sliding_window is None else visible & (position > last[row] - sliding_window)

        return is_visible


def record_cuda_graph(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Runs it a few times, for what is compiled and allocated on the way, and then records it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.inference_mode():
        for _ in range(3):
            compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.inference_mode():
        output = compute()

    def replay() -> Tensor:
        graph.replay()
        return output.clone()

    return replay


@functools.cache
def _compiled_attention() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=False)


def _soft_cap(cap: float | None) -> Callable[..., Tensor] | None:
    if cap is None:
        return None
    return lambda score, *_: cap * torch.tanh(score / cap)


def _slot(row: Row) -> int:
    """Where the row's position lies in the pool."""
    left = row.position
    for start, stop in row.runs:
        if left < stop - start:
            return start + left
        left -= stop - start
    raise AssertionError(f"position {row.position} lies outside the runs {row.runs}")


def _long(count: int, like: Tensor) -> Tensor:
    return torch.zeros(count, dtype=torch.long, device=like.device)
