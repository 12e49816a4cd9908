"""The last layer for the rows that matter: all of a step's rows leave their keys and values there, and only those whose
logits are asked for go through the rest of it.

    rows of the step      a a a a b c c c      through all layers before
    last layer            a a a a b c c c      to their keys and values
                                a b     c      to the end

Of a prompt that is one row. A decoder of L layers is spared about one L-th of a prefill, whatever its architecture: the
layer's own forward is run, up to its attention for all rows, and then as a whole for some.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from refrag.engine.attention import Heads, PagedStep

# T rows of a step, S of them that matter


@contextmanager
def last_rows_only(layer: nn.Module, step: PagedStep) -> Iterator[None]:
    """While it lasts, what comes out of the layer is of the last row of each of the step's spans alone."""
    rows, last = step.last_rows, step.of_last_rows()

    def select(layer: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        try:
            layer.forward(*args, **{**kwargs, "step": _WriteStep(step)})
            raise AssertionError("the last layer did not come to its attention")
        except _Written:
            args, kwargs = _select_rows((args, kwargs), len(step.slots), rows)
            return args, {**kwargs, "step": last}

    hook = layer.register_forward_pre_hook(select, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


class _Written(Exception):
    """Keys and values are where they belong."""


@dataclass(frozen=True)
class _WriteStep:
    """Keeps keys and values, and goes no further."""

    whole: PagedStep

    def attend(self, heads: Heads) -> Tensor:
        self.whole.write(heads)
        raise _Written


def _select_rows(arguments: Any, num_rows: int, rows: Tensor) -> Any:
    """Of every tensor (1, T, …) in them, its rows (1, S, …)."""

    def select(tensor: Tensor) -> Tensor:
        return tensor.index_select(1, rows) if tensor.shape[:2] == (1, num_rows) else tensor

    return tree_map_only(torch.Tensor, select, arguments)
