"""Runs many requests to an ONNX model in few calls of its ONNX Runtime session.

R requests of a dynamic batch, N rows in all of them together
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray]


class BatchedModel:
    """An ONNX model that runs many requests in few calls of its ONNX Runtime session."""

    def __init__(self, session: Any, output_names: list[str], has_batches: bool, max_rows_per_run: int) -> None:
        self.session = session
        self.output_names = output_names
        self.has_batches = has_batches
        self.max_rows_per_run = max_rows_per_run

    def is_short(self, feed: Tensors) -> bool:
        """Return whether one run takes the feed whole."""
        return not self.has_batches or len(next(iter(feed.values()))) <= self.max_rows_per_run

    def cut(self, feed: Tensors) -> Iterator[Tensors]:
        """Yield the feed in pieces of one run each."""
        for start in range(0, len(next(iter(feed.values()))), self.max_rows_per_run):
            yield {name: array[start : start + self.max_rows_per_run] for name, array in feed.items()}

    def run_each(self, feeds: list[Tensors]) -> list[Tensors | Exception]:
        """Return one result per feed, in order: its outputs by name, or the exception that it alone caused."""
        results: dict[int, Tensors | Exception] = {}
        for indices in self._group(feeds):
            results.update(zip(indices, self._run_group([feeds[index] for index in indices]), strict=True))
        return [results[index] for index in range(len(feeds))]

    def _group(self, feeds: list[Tensors]) -> list[list[int]]:
        """Return groups of feeds, by index, that can share a run: equal in everything but their number of rows."""
        if not self.has_batches:
            return [[index] for index in range(len(feeds))]
        groups: defaultdict[Any, list[int]] = defaultdict(list)
        for index, feed in enumerate(feeds):
            groups[tuple((name, array.shape[1:]) for name, array in feed.items())].append(index)
        return list(groups.values())

    def _run_group(self, feeds: list[Tensors]) -> Sequence[Tensors | Exception]:
        try:
            return self._run_together(feeds)
        except Exception as error:  # ONNX Runtime's exceptions share no other base
            if len(feeds) == 1:
                return [error]
            # One of them is at fault; alone, it fails alone.
            return [self._run_group([feed])[0] for feed in feeds]

    def _run_together(self, feeds: list[Tensors]) -> list[Tensors]:
        if not self.has_batches:
            return [dict(zip(self.output_names, self._run(feed), strict=True)) for feed in feeds]
        nums_rows = [len(next(iter(feed.values()))) for feed in feeds]  # (R,)
        batch = feeds[0] if len(feeds) == 1 else {name: np.concatenate([f[name] for f in feeds]) for name in feeds[0]}
        outputs = self._run_in_slices(batch, sum(nums_rows))  # each (N, …)
        edges = np.cumsum([0, *nums_rows])  # (R + 1,)
        return [
            {name: output[start:stop] for name, output in zip(self.output_names, outputs, strict=True)}
            for start, stop in pairwise(edges)
        ]

    def _run_in_slices(self, batch: Tensors, num_rows: int) -> list[np.ndarray]:
        """Run at most `max_rows_per_run` rows at a time, which bounds the memory of activations."""
        runs = []
        for start in range(0, num_rows, self.max_rows_per_run):
            rows = slice(start, min(start + self.max_rows_per_run, num_rows))
            runs.append(self._run({name: array[rows] for name, array in batch.items()}))
            self._check_rows(runs[-1], rows.stop - rows.start)
        return runs[0] if len(runs) == 1 else [np.concatenate(parts) for parts in zip(*runs, strict=True)]

    def _run(self, feed: Tensors) -> list[np.ndarray]:
        outputs: list[np.ndarray] = self.session.run(self.output_names, feed)
        return outputs

    def _check_rows(self, outputs: list[np.ndarray], num_rows: int) -> None:
        for name, output in zip(self.output_names, outputs, strict=True):
            if output.ndim == 0 or len(output) != num_rows:
                raise ValueError(
                    f"output {name!r} has shape {list(output.shape)} for {num_rows} input rows; "
                    "a model without one output row per input row needs max_batch_size: 0"
                )
