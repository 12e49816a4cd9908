"""Computes attention of a packed step over the paged KV cache, for models with transformers' attention interface.

The rows of a step belong to several sequences. Each row attends only to slots of its own sequence, new ones included.
A sequence's slots lie in as few runs as the pool could make:

    rows of the step      a b b b c              a, c decode; three slots of b are prefilled
    slots of the pool     . b b b b b . a a a a a . c c b b b . c c .
    runs of b                 └───────┘                   └───┘

Decoding reads the runs in place. A prefill copies runs that lie apart into one, since its own work is large beside that
copy.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from refrag.engine.block_pool import Run, clip_runs
from refrag.engine.kv_cache import KVCache

# H query heads, in K groups of G that share a key-value head; T rows of a step in S spans, R rows of one sequence,
# L slots that they see, W width of a head, which may be another for values than for queries and keys

PAGED_ATTENTION = "refrag_paged"
# A step whose runs have fewer rows than this on average is written slot by slot.
LONG_RUN = 16


@dataclass(frozen=True)
class Heads:
    """Input of one layer's attention in a step: query (H, T, W), key and value (K, T, W).

    sliding_window: positions that a row sees, its own included; None for all. softcap: bound of the scores, or None.
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    sliding_window: int | None
    softcap: float | None


class Watch(Protocol):
    """A reader of attention weights."""

    def see(self, heads: Heads, span: "Span", pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Look at the span's rows in one layer; the pairs hold the keys of all slots up to the last row's."""


class Step(Protocol):
    """The attention of one forward pass, in all of its layers."""

    def attend(self, heads: Heads) -> Tensor:
        """Return the attention's output for the step's rows.  -> (T, H, W)"""


@dataclass(frozen=True)
class Span:
    """The rows of one sequence in a step.

    num_past: slots of the sequence before them. runs: where its slots lie in the pool, up to the last row's.
    watch: what is to be read of their attention; None for nothing.
    """

    rows: slice
    num_past: int
    runs: Sequence[Run]
    watch: Watch | None = None

    @property
    def num_rows(self) -> int:
        return self.rows.stop - self.rows.start


@dataclass
class PagedStep:
    """A step over the paged KV cache.

    slots (T,): where in the pool the rows' keys and values go. runs: the same slots as runs, if they are known.
    """

    cache: KVCache
    slots: Tensor
    spans: Sequence[Span]
    runs: Sequence[Run] = ()
    masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    @property
    def last_rows(self) -> Tensor:
        """Return the number of the last row of each span.  (S,)"""
        return torch.tensor([span.rows.stop - 1 for span in self.spans], device=self.slots.device)

    def of_last_rows(self) -> "PagedStep":
        """Return the step of these rows alone; the others' keys and values must have been written."""
        spans = [
            Span(slice(number, number + 1), span.num_past + span.num_rows - 1, span.runs)
            for number, span in enumerate(self.spans)
        ]
        return PagedStep(self.cache, self.slots[self.last_rows], spans)

    def write(self, heads: Heads) -> None:
        if self.runs and LONG_RUN * len(self.runs) <= len(self.slots):
            self.cache.write_runs(heads.layer, self.runs, heads.key, heads.value)
        else:
            self.cache.write(heads.layer, self.slots, heads.key, heads.value)

    def attend(self, heads: Heads) -> Tensor:
        self.write(heads)
        for span in self.spans:
            if span.watch is not None:
                span.watch.see(heads, span, self.cache.read(heads.layer, span.runs))
        if all(_is_whole(span, heads) for span in self.spans):
            outputs = [attend_whole(heads, span.rows) for span in self.spans]
            return outputs[0].contiguous() if len(outputs) == 1 else torch.cat(outputs)
        query, key, value = heads.query, heads.key, heads.value
        num_rows, num_groups, width = query.shape[1], key.shape[0], value.shape[2]
        rows = (query * heads.scaling).transpose(0, 1).reshape(num_rows, num_groups, -1, query.shape[2])  # (T, K, G, W)
        output = query.new_empty(num_rows, num_groups, rows.shape[2], width)
        for span in self.spans:
            runs = _last_slots(span, heads.sliding_window)
            pairs = self.cache.read(heads.layer, runs)
            if span.num_rows == 1:
                attend_one(rows[span.rows.start], pairs, heads.softcap, output[span.rows.start])
            elif _is_whole(span, heads):
                output[span.rows] = attend_whole(heads, span.rows).unflatten(1, (num_groups, -1))
            elif rows.device.type == "cpu" and _is_plain(span, heads) and key.shape == value.shape:
                output[span.rows] = attend_after(rows[span.rows], pairs)
            else:
                mask = self._mask(span, runs, heads.sliding_window)
                output[span.rows] = attend_many(rows[span.rows], pairs, mask, heads.softcap)
        return output.flatten(1, 2)

    def _mask(self, span: Span, runs: Sequence[Run], sliding_window: int | None) -> Tensor:
        """Return the span's mask, made once for all layers of the same window."""
        key = span.rows.start, sliding_window
        if key not in self.masks:
            self.masks[key] = causal_mask(span, _num_slots(runs), sliding_window, self.slots.device)
        return self.masks[key]


_step: ContextVar[Step] = ContextVar("step")


@contextmanager
def attending(step: Step) -> Iterator[None]:
    """Let the step compute the attention of forward passes inside. Not every family hands keywords on to its layers."""
    token = _step.set(step)
    try:
        yield
    finally:
        _step.reset(token)


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Fulfil transformers' attention interface, by the step in whose context it is.  (1, H, T, W) -> (1, T, H, W)"""
    layer: int = module.layer_idx  # type: ignore[assignment]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    heads = Heads(layer, query[0], key[0], value[0], scaling, sliding_window, softcap)
    return _step.get().attend(heads).unsqueeze(0), None


AttentionInterface.register(PAGED_ATTENTION, paged_attention)


def attend_whole(heads: Heads, rows: slice) -> Tensor:
    """Attend rows that are a whole sequence so far to each other, without reading from the cache.  -> (R, H, W)"""
    output = F.scaled_dot_product_attention(
        heads.query[:, rows].unsqueeze(0),
        heads.key[:, rows].unsqueeze(0),
        heads.value[:, rows].unsqueeze(0),
        is_causal=True,
        scale=heads.scaling,
        enable_gqa=len(heads.query) > len(heads.key),
    )
    return output[0].transpose(0, 1)


def attend_one(query: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], softcap: float | None, output: Tensor) -> None:
    """Attend one scaled row to all slots of the pairs, which are read in place.  (K, G, W) -> output (K, G, W)"""
    if len(pairs) == 1:
        keys, values = pairs[0]
        torch.bmm(softmax(torch.bmm(query, keys.transpose(1, 2)), softcap), values, out=output)
        return
    scores = [torch.bmm(query, keys.transpose(1, 2)) for keys, _ in pairs]
    weights = softmax(torch.cat(scores, -1), softcap).split([part.shape[2] for part in scores], -1)
    output.zero_()
    for share, (_, values) in zip(weights, pairs, strict=True):
        output.baddbmm_(share, values)


def attend_after(query: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Attend several scaled rows to all slots before them and causally to each other, on a CPU.

    Two passes, over the earlier slots without a mask and over the rows' own as a causal square, are weighted by their
    sums of exponentials. A mask over both would cost as much as the products.  (R, K, G, W) -> (R, K, G, W)
    """
    keys, values = joined(pairs)
    num_rows, _, group_size, _ = query.shape
    num_past = keys.shape[1] - num_rows
    # The kernel reads rows as if they were contiguous, and does not check.
    grouped = query.permute(1, 2, 0, 3).contiguous()  # (K, G, R, W)
    own_keys, own_values = (part[:, num_past:].repeat_interleave(group_size, 0) for part in (keys, values))  # (H, R, W)
    before, log_sum_before = _flash(grouped.flatten(1, 2), keys[:, :num_past], values[:, :num_past], is_causal=False)
    within, log_sum_within = _flash(grouped.flatten(0, 1), own_keys, own_values, is_causal=True)
    share = torch.sigmoid(log_sum_before.reshape(-1, num_rows) - log_sum_within).unsqueeze(-1)  # (H, R, 1)
    output = torch.lerp(within, before.reshape(within.shape), share.to(within.dtype))  # (H, R, W)
    return output.unflatten(0, (-1, group_size)).permute(2, 0, 1, 3)


def _flash(query: Tensor, keys: Tensor, values: Tensor, is_causal: bool) -> tuple[Tensor, Tensor]:
    """Return attention and the logarithm of each row's sum of exponentials, which torch's public function hides.

    (H, R, W), (H, L, W), (H, L, W) -> (H, R, W), (H, R)
    """
    output, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query.unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0), is_causal=is_causal, scale=1.0
    )
    return output[0], log_sums[0]


def attend_many(query: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], mask: Tensor, softcap: float | None) -> Tensor:
    """Attend several scaled rows, each to the slots that the mask (R, L) lets it see.  (R, K, G, W) -> (R, K, G, W)"""
    keys, values = joined(pairs)
    num_rows, _, group_size, _ = query.shape
    # A group's heads become further rows, so that its keys and values are read once for all of them.
    rows, mask = query.permute(1, 2, 0, 3).flatten(1, 2), mask.repeat(group_size, 1)  # (K, G R, W), (G R, L)
    if softcap is None:
        output = F.scaled_dot_product_attention(
            rows.unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0), attn_mask=mask, scale=1.0
        )[0]
    else:
        output = torch.bmm(softmax(torch.bmm(rows, keys.transpose(1, 2)), softcap, mask), values)
    return output.unflatten(1, (group_size, num_rows)).permute(2, 0, 1, 3)


def causal_mask(span: Span, num_slots: int, sliding_window: int | None, device: torch.device) -> Tensor:
    """Return which of the span's last `num_slots` positions each of its rows sees.  (R, L)"""
    end = span.num_past + span.num_rows
    rows = torch.arange(span.num_past, end, device=device).unsqueeze(1)
    slots = torch.arange(end - num_slots, end, device=device).unsqueeze(0)
    mask = slots <= rows
    return mask if sliding_window is None else mask & (slots > rows - sliding_window)


def _is_whole(span: Span, heads: Heads) -> bool:
    return span.num_past == 0 and span.num_rows > 1 and _is_plain(span, heads)


def _is_plain(span: Span, heads: Heads) -> bool:
    """Return whether each row sees all slots up to its own, and scores have no bound."""
    return heads.softcap is None and _fits_window(span, heads.sliding_window)


def _fits_window(span: Span, sliding_window: int | None) -> bool:
    return sliding_window is None or span.num_past + span.num_rows <= sliding_window


def joined(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return keys and values of all runs, copied together if there are several."""
    if len(pairs) == 1:
        return pairs[0]
    keys, values = zip(*pairs, strict=True)
    return torch.cat(keys, 1), torch.cat(values, 1)


def _last_slots(span: Span, sliding_window: int | None) -> Sequence[Run]:
    """Return the span's runs without the slots before the sliding window of its first row."""
    num_hidden = 0 if sliding_window is None else span.num_past - sliding_window + 1
    return span.runs if num_hidden <= 0 else clip_runs(span.runs, num_hidden, span.num_past + span.num_rows)


def _num_slots(runs: Sequence[Run]) -> int:
    return sum(stop - start for start, stop in runs)


def softmax(scores: Tensor, softcap: float | None, mask: Tensor | None = None) -> Tensor:
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1)
