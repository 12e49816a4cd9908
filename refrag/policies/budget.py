"""Computes how many chunks a request may expand, and how many if its policy is not sure enough."""

import math

import numpy as np

from refrag.errors import InvalidRequest
from refrag.request import EXPAND_ALL, EXPAND_NOTHING, ExpansionOptions, Fallback

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
    room = options.max_prompt_slots - num_other_slots - num_chunks
    fitting = _num_fitting(lengths, room)
    fewest = num_chunks if options.policy == EXPAND_ALL else 0
    if room < 0 or fitting < fewest:
        needed = num_other_slots + (int(lengths.sum()) if fewest else num_chunks)
        state = "every chunk expanded, as policy all asks" if fewest else "no chunk expanded"
        raise InvalidRequest(
            f"max_prompt_slots is {options.max_prompt_slots}; the prompt takes {needed} with {state}; allow more, or "
            "send fewer passages"
        )
    return min(budget, fitting)


def fallback_of(
    options: ExpansionOptions, budget: int, lengths: np.ndarray, num_other_slots: int, num_slots: int
) -> Fallback | None:
    """Return what the request's budget is raised to if its policy is not sure enough; None if it never is.

    A raised prompt has room whichever chunks it expands, so nothing is refused for it. budget, lengths,
    num_other_slots: as in `budget_of`. num_slots: what the answer leaves of the decoder's window.
    """
    if options.min_confidence == 0 or options.policy in (EXPAND_NOTHING, EXPAND_ALL):
        return None
    if options.max_prompt_slots is not None:
        num_slots = min(num_slots, options.max_prompt_slots)
    raised = max(budget, _num_fitting(lengths, num_slots - num_other_slots - len(lengths)))
    # A served confidence travels as FP32, and the same request is to be raised alike in one process.
    return Fallback(float(np.float32(options.min_confidence)), raised) if raised else None


def _num_fitting(lengths: np.ndarray, room: int) -> int:
    """Return how many chunks can be expanded, whichever they are, with `room` slots besides one for each chunk."""
    # Slots with the longest chunk expanded, the two longest, and so on: as each takes a slot anyway, one less.
    added = np.sort(lengths - 1)[::-1].cumsum()  # (C,)
    return int(np.searchsorted(added, room, side="right"))
