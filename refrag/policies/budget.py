"""Computes how many chunks a request may expand."""

import math

from refrag.request import ExpansionOptions

# Policies with a fixed budget, whatever expand_fraction the request gives.
EXPAND_NOTHING, EXPAND_ALL = "none", "all"


def expansion_budget(expand_fraction: float, num_chunks: int) -> int:
    """Return how many of `num_chunks` may be expanded: the fraction of them, rounded down."""
    # A fraction travels as FP32: 0.7 arrives as 0.69999999, and rounding to six digits restores it.
    return math.floor(round(expand_fraction, 6) * num_chunks + 1e-9)


def budget_of(options: ExpansionOptions, num_chunks: int) -> int:
    """Return how many of the request's chunks its policy may expand."""
    if options.policy == EXPAND_NOTHING:
        return 0
    return num_chunks if options.policy == EXPAND_ALL else expansion_budget(options.expand_fraction, num_chunks)


def expands_all(options: ExpansionOptions, num_chunks: int) -> bool:
    """Return whether the prompt is the plain one, with every chunk expanded, for which no vector is needed."""
    return budget_of(options, num_chunks) == num_chunks
