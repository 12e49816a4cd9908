"""Runs one step's rows, of many sequences, through the decoder in one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from refrag.engine.attention import PAGED_ATTENTION, PagedStep, Span
from refrag.engine.block_pool import Run
from refrag.engine.generation import MixedPrompt
from refrag.engine.kv_cache import KVCache
from refrag.model.decoder import Decoder

# S parts, T rows of a step, P prompt slots, D decoder width, V vocabulary size


@dataclass(frozen=True)
class Segment:
    """Slots [start, stop) of one sequence: its prompt's, then one for each generated token; `blocks` hold them all."""

    prompt: MixedPrompt
    token_ids: Sequence[int]
    blocks: Sequence[int]
    start: int
    stop: int


class Runner:
    """The decoder and its KV cache. What a segment needs of the slots before it must have been run already."""

    def __init__(self, decoder: Decoder, cache: KVCache, block_size: int) -> None:
        self.decoder, self.cache, self.block_size = decoder, cache, block_size
        self.device = decoder.backbone.device

    @torch.inference_mode()
    def run(self, segments: Sequence[Segment]) -> Tensor:
        """The logits after each segment's last slot.  S segments -> (S, V)"""
        stops = list(accumulate(segment.stop - segment.start for segment in segments))
        runs = [runs_of_slots(segment.blocks, segment.stop, self.block_size) for segment in segments]
        spans = [
            Span(slice(first, last), segment.start, its_runs)
            for segment, its_runs, (first, last) in zip(segments, runs, pairwise([0, *stops]), strict=True)
        ]
        positions = [position for segment in segments for position in range(segment.start, segment.stop)]
        slots = [
            segment.blocks[position // self.block_size] * self.block_size + position % self.block_size
            for segment in segments
            for position in range(segment.start, segment.stop)
        ]
        states = self.decoder.read_with(
            PAGED_ATTENTION,
            self._embed(segments),
            torch.tensor(positions, device=self.device),
            step=PagedStep(self.cache, torch.tensor(slots, device=self.device), spans),
        )  # (T, D)
        last_rows = torch.tensor(stops, device=self.device) - 1
        return self.decoder.logits(states[last_rows])

    def _embed(self, segments: Sequence[Segment]) -> Tensor:
        """Prompt slots as the prompt says, generated tokens all at once if the step holds nothing else.  -> (T, D)"""
        if all(segment.start >= len(segment.prompt.input_ids) for segment in segments):
            token_ids = [token_id for segment in segments for token_id in generated(segment)]
            return self.decoder.token_embeddings(torch.tensor(token_ids, device=self.device))
        return torch.cat([self._embed_one(segment) for segment in segments])

    def _embed_one(self, segment: Segment) -> Tensor:
        prompt_ids = segment.prompt.input_ids[segment.start : segment.stop]
        ids = torch.cat([prompt_ids, torch.tensor(generated(segment), dtype=prompt_ids.dtype)])
        rows = segment.prompt.chunk_embeddings
        return self.decoder.embed_prompt(ids.to(self.device), rows.to(self.device))


def generated(segment: Segment) -> Sequence[int]:
    """The generated tokens among the segment's slots."""
    num_prompt = len(segment.prompt.input_ids)
    return segment.token_ids[max(0, segment.start - num_prompt) : max(0, segment.stop - num_prompt)]


def runs_of_slots(blocks: Sequence[int], num_slots: int, block_size: int) -> list[Run]:
    """Bounds, in slots of the pool, of what neighbouring blocks hold together of the first `num_slots`."""
    runs: list[Run] = []
    for index, block in enumerate(blocks[: -(-num_slots // block_size)]):
        start, stop = block * block_size, block * block_size + min(block_size, num_slots - index * block_size)
        if runs and runs[-1][1] == start:
            runs[-1] = runs[-1][0], stop
        else:
            runs.append((start, stop))
    return runs
