"""Runs one step of many sequences through the decoder, in one forward pass or, with CUDA graphs, in two."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from refrag.decoders.base import MixedPrompt
from refrag.engine.attention import PAGED_ATTENTION, PagedStep, Span, Watch, attending
from refrag.engine.block_pool import Run, clip_runs
from refrag.engine.decode_graphs import DecodeGraphs, Row
from refrag.engine.kv_cache import KVCache
from refrag.engine.last_layer import last_rows_only
from refrag.model.decoder import Decoder

# S parts, T rows of a step, P prompt slots, D decoder width, V vocabulary size


@dataclass(frozen=True)
class Segment:
    """Slots [start, stop) of one sequence, to be computed in one step.

    A sequence's slots are its prompt's, then one for each generated token. runs: where all of them lie in the pool.
    watch: what is to be read of their attention; None for nothing.
    """

    prompt: MixedPrompt
    token_ids: Sequence[int]
    runs: Sequence[Run]
    start: int
    stop: int
    watch: Watch | None = None

    @property
    def is_recordable(self) -> bool:
        """Return whether a CUDA graph can compute it."""
        return self.stop - self.start == 1 and self.watch is None


class Runner:
    """A decoder with its KV cache. All slots before a segment must have been computed already.

    graphs: CUDA graphs for segments of one slot; None where there are none.
    last_layer: the decoder's last layer, if it can be computed for only some of a step's rows; else None.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        graphs: DecodeGraphs | None = None,
        last_layer: nn.Module | None = None,
    ) -> None:
        self.decoder, self.cache, self.device = decoder, cache, decoder.backbone.device
        self.graphs, self.last_layer = graphs, last_layer

    @torch.inference_mode()
    def run(self, segments: Sequence[Segment]) -> Tensor:
        """Compute the segments and return the logits after the last slot of each.  S segments -> (S, V)"""
        if self.graphs is None:
            return self._run_packed(segments)
        single = [index for index, segment in enumerate(segments) if segment.is_recordable]
        longer = [index for index, segment in enumerate(segments) if not segment.is_recordable]
        parts = []
        if single:
            parts.append(self._run_single(self.graphs, [segments[index] for index in single]))
        if longer:
            parts.append(self._run_packed([segments[index] for index in longer]))
        return torch.cat(parts)[torch.tensor([*single, *longer], device=self.device).argsort()]

    def _run_single(self, graphs: DecodeGraphs, segments: Sequence[Segment]) -> Tensor:
        return graphs.run(self._embed(segments), [Row(segment.runs, segment.start) for segment in segments])

    def _run_packed(self, segments: Sequence[Segment]) -> Tensor:
        stops = list(accumulate(segment.stop - segment.start for segment in segments))
        spans = [
            Span(slice(first, last), segment.start, clip_runs(segment.runs, 0, segment.stop), segment.watch)
            for segment, (first, last) in zip(segments, pairwise([0, *stops]), strict=True)
        ]
        runs = [run for segment in segments for run in clip_runs(segment.runs, segment.start, segment.stop)]
        slots = [slot for run in runs for slot in range(*run)]
        step = PagedStep(self.cache, torch.tensor(slots, device=self.device), spans, runs)
        if self.last_layer is None or len(slots) == len(segments):
            return self.decoder.logits(self._read(segments, step)[step.last_rows])
        with last_rows_only(self.last_layer, step):
            states = self._read(segments, step)  # (S, D)
        assert len(states) == len(segments), f"{len(states)} rows came out of the last layer for {len(segments)} parts"
        return self.decoder.logits(states)

    def _read(self, segments: Sequence[Segment], step: PagedStep) -> Tensor:
        """Return the hidden states: of all rows (T, D), or of those that the last layer is computed for (S, D)."""
        positions = [position for segment in segments for position in range(segment.start, segment.stop)]
        with attending(step):
            return self.decoder.read_with(
                PAGED_ATTENTION, self._embed(segments), torch.tensor(positions, device=self.device)
            )

    def _embed(self, segments: Sequence[Segment]) -> Tensor:
        """Return the embeddings of all rows, looked up at once with all chunk embeddings in one table.  -> (T, D)"""
        input_ids: list[int] = []
        tables: list[Tensor] = []
        num_rows, vocab_size = 0, self.decoder.vocab_size
        for segment in segments:
            prompt_ids = segment.prompt.input_ids[segment.start : segment.stop].tolist()
            if any(token_id >= vocab_size for token_id in prompt_ids):
                prompt_ids = [i + num_rows if i >= vocab_size else i for i in prompt_ids]
                tables.append(segment.prompt.chunk_embeddings)
                num_rows += len(tables[-1])
            input_ids += prompt_ids
            input_ids += generated(segment)
        ids = torch.tensor(input_ids, device=self.device)
        if not tables:
            return self.decoder.token_embeddings(ids)
        return self.decoder.embed_prompt(ids, torch.cat(tables).to(self.device))


def generated(segment: Segment) -> Sequence[int]:
    """Return the generated tokens among the segment's slots."""
    num_prompt = len(segment.prompt.input_ids)
    return segment.token_ids[max(0, segment.start - num_prompt) : max(0, segment.stop - num_prompt)]
