"""Computes the last layer only for the rows that matter.

All rows of a step leave their keys and values there; only those whose logits are needed go through the rest of it:

    rows of the step      a a a a b c c c      through all layers before
    last layer            a a a a b c c c      to their keys and values
                                a b     c      to the end

A prompt has one such row. That saves a decoder of L layers about one L-th of a prefill. It works for any architecture:
the layer's own forward runs twice, for all rows up to its attention, then as a whole for the rows that matter.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from refrag.engine.attention import Heads, PagedStep, attending

# T rows of a step, S of them that matter


@contextmanager
def last_rows_only(layer: nn.Module, step: PagedStep) -> Iterator[None]:
    """Let the layer return only the last row of each span of the step, as long as the context is open."""
    rows, last = step.last_rows, step.of_last_rows()
    rest_of_layer = ExitStack()

    def select(layer: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        try:
            with attending(_WriteStep(step)):
                layer.forward(*args, **kwargs)
            raise AssertionError("the last layer returned before its attention was computed")
        except _Written:
            rest_of_layer.enter_context(attending(last))
            return _select_rows((args, kwargs), len(step.slots), rows)

    hooks = [
        layer.register_forward_pre_hook(select, with_kwargs=True),
        layer.register_forward_hook(lambda *_: rest_of_layer.close(), always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Written(Exception):
    """Raised when keys and values have been written, to leave the layer's forward."""


@dataclass(frozen=True)
class _WriteStep:
    """A step that writes keys and values, then raises _Written."""

    whole: PagedStep

    def attend(self, heads: Heads) -> Tensor:
        self.whole.write(heads)
        raise _Written


def _select_rows(arguments: Any, num_rows: int, rows: Tensor) -> Any:
    """Replace every tensor (1, T, …) in the arguments by the rows asked for (1, S, …)."""

    def select(tensor: Tensor) -> Tensor:
        return tensor.index_select(1, rows) if tensor.shape[:2] == (1, num_rows) else tensor

    return tree_map_only(torch.Tensor, select, arguments)
