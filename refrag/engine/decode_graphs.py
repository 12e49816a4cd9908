"""Decodes on a GPU: one row of each running answer, in a pass that is recorded once as a CUDA graph and replayed.

A decoding step is too small to keep a GPU busy while Python launches its thousands of kernels. So the pass is recorded
as CUDA graphs of 1, 2, 4, … rows, over tensors that stay where they are and are filled before each replay. Each layer
reads the blocks of all rows in one kernel: flex attention, whose mask looks up each slot's position in a block table:

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

from refrag.engine.attention import PAGED_ATTENTION, Heads, attending
from refrag.engine.block_pool import Run
from refrag.engine.kv_cache import KVCache
from refrag.model.decoder import Decoder

# B rows, N blocks of the cache, D decoder width, V vocabulary size; H, K, W, P as in attention and kv_cache

# Takes a pass and returns one that repeats it over the same tensors; each call returns a new copy of its output.
Recorder = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
# Query rows in a block of flex attention; a decoding sequence has only one.
QUERY_BLOCK = 128
MAX_KERNELS = 64
NOWHERE = -1


@dataclass(frozen=True)
class Row:
    """The slot to be computed of one sequence, its last. runs: where all its slots lie in the pool."""

    runs: Sequence[Run]
    position: int


class DecodeGraphs:
    """CUDA graphs of the decoding pass, one for each of a few numbers of rows.

    A step uses the smallest that holds its rows, and pads it with rows that read and write the cache's last block,
    which no sequence may have. recorder: by default `record_cuda_graph`; tests without a GPU give another.
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
        """Compute the rows and return the logits after each.  (B, D), B rows -> (B, V)"""
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
            with attending(self.step):
                return decoder.logits(decoder.read_with(PAGED_ATTENTION, self.embeddings, self.step.positions))

        self.replay = record(compute)

    def run(self, embeddings: Tensor, rows: Sequence[Row]) -> Tensor:
        self.embeddings[: len(rows)] = embeddings
        self._fill(rows)
        return self.replay()[: len(rows)]

    def _fill(self, rows: Sequence[Row]) -> None:
        """Fill the recorded tensors. A table is written only when its row gets another sequence, since blocks stay."""
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
    """The blocks of each row, in flex attention's form.

    counts (B, 1, 1), indices (B, 1, 1, N): how many blocks a row has, and which.
    firsts (B, N): position of each block's first slot in the row's sequence, NOWHERE for blocks that are not the row's.
    """

    def __init__(self, num_rows: int, num_blocks: int, like: Tensor) -> None:
        self.counts = torch.zeros(num_rows, 1, 1, dtype=torch.int32, device=like.device)
        self.indices = torch.zeros(num_rows, 1, 1, num_blocks, dtype=torch.int32, device=like.device)
        self.firsts = torch.full((num_rows, num_blocks), NOWHERE, dtype=torch.int32, device=like.device)

    def write(self, row: int, runs: Sequence[Run], block_size: int) -> None:
        """Set the table of one row, whose slots lie in these runs of whole blocks."""
        blocks = torch.tensor([slot // block_size for start, stop in runs for slot in range(start, stop, block_size)])
        self.counts[row] = len(blocks)
        self.indices[row, 0, 0, : len(blocks)] = blocks.to(self.indices)
        firsts = torch.full((self.firsts.shape[1],), NOWHERE, dtype=torch.int32)
        firsts[blocks] = torch.arange(len(blocks), dtype=torch.int32) * block_size
        self.firsts[row] = firsts.to(self.firsts)


@dataclass
class TableStep:
    """A decoding step by block tables. slots, positions (B,): where each row is in the pool and in its sequence."""

    cache: KVCache
    block_size: int
    slots: Tensor
    tables: BlockTables
    positions: Tensor = field(init=False)
    masks: dict[int | None, BlockMask] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.positions = torch.zeros_like(self.slots)

    def attend(self, heads: Heads) -> Tensor:
        """Store the rows' keys and values, and attend each row to its sequence's slots.  -> (B, H, W)"""
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
        """Return the mask, made once for all layers of one window and all steps: it reads the tables at each replay."""
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
    """Record the pass as a CUDA graph and return its replay; see `Recorder`.

    The pass is run a few times first, so that everything is compiled and allocated.
    """
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
    # One kernel for each number of rows, each window and each dtype: beyond its usual eight torch gives up
    # compiling, and what it calls instead cannot be recorded.
    torch._dynamo.config.recompile_limit = max(MAX_KERNELS, torch._dynamo.config.recompile_limit)
    return torch.compile(flex_attention, dynamic=False)


def _soft_cap(cap: float | None) -> Callable[..., Tensor] | None:
    if cap is None:
        return None
    return lambda score, *_: cap * torch.tanh(score / cap)


def _slot(row: Row) -> int:
    """Return where in the pool the row's position lies."""
    left = row.position
    for start, stop in row.runs:
        if left < stop - start:
            return start + left
        left -= stop - start
    raise AssertionError(f"position {row.position} lies outside the runs {row.runs}")


def _long(count: int, like: Tensor) -> Tensor:
    return torch.zeros(count, dtype=torch.long, device=like.device)
