"""Computes how many chunks a request may expand."""

import math

import numpy as np

from refrag.errors import InvalidRequest
from refrag.request import EXPAND_ALL, EXPAND_NOTHING, ExpansionOptions

# C context chunks


def expansion_budget(expand_fraction: float, num_chunks: int) -> int:
    """Return how many of `num_chunks` may be expanded: the fraction of them, rounded down."""
    # A fraction travels as FP32: 0.7 arrives as 0.69999999, and rounding to six digits restores it.
    return math.floor(round(expand_fraction, 6) * num_chunks + 1e-9)


def budget_of(options: ExpansionOptions, lengths: np.ndarray, num_other_slots: int, window: int) -> int:
    """Return how many of the request's chunks its policy may expand, whichever it selects.

    lengths: tokens of each chunk (C,). num_other_slots: slots of the prompt besides its context. window: the decoder's.
    Raises InvalidRequest if the prompt takes more than `max_prompt_slots` with the fewest chunks expanded that the
    policy allows, or if that is more than the window.
    """
    num_chunks = len(lengths)
    if options.policy == EXPAND_NOTHING:
        budget = 0
    elif options.policy == EXPAND_ALL:
        budget = num_chunks
    else:
        budget = expansion_budget(options.expand_fraction, num_chunks)
    if options.max_prompt_slots is None:
        return budget
    if options.max_prompt_slots > window:
        raise InvalidRequest(
            f"max_prompt_slots is {options.max_prompt_slots}; allowed is 1 to {window}, the decoder's window"
        )
    # Slots with the longest chunk expanded, the two longest, and so on: as each takes a slot anyway, one less.
    added = np.sort(lengths - 1)[::-1].cumsum()  # (C,)
    room = options.max_prompt_slots - num_other_slots - num_chunks
    fitting = int(np.searchsorted(added, room, side="right"))
    fewest = num_chunks if options.policy == EXPAND_ALL else 0
    if room < 0 or fitting < fewest:
        needed = num_other_slots + num_chunks + (int(added[-1]) if fewest else 0)
        state = "every chunk expanded, as policy all asks" if fewest else "no chunk expanded"
        raise InvalidRequest(
            f"max_prompt_slots is {options.max_prompt_slots}; the prompt takes {needed} with {state}; allow more, or "
            "send fewer passages"
        )
    return min(budget, fitting)
