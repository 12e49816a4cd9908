"""How many chunks a request expands."""

import math

from refrag.request import ExpansionOptions

# Policies whose budget is fixed, whatever fraction the request names.
EXPAND_NOTHING, EXPAND_ALL = "none", "all"


def expansion_budget(expand_fraction: float, num_chunks: int) -> int:
    """Return how many chunks may be expanded: rounded down, so never more than the fraction; 0 expands nothing."""
    # A fraction travels as FP32: 0.7 arrives as 0.69999999, and six digits bring it back.
    return math.floor(round(expand_fraction, 6) * num_chunks + 1e-9)


def budget_of(options: ExpansionOptions, num_chunks: int) -> int:
    """Return how many of the request's chunks its policy may expand."""
    if options.policy == EXPAND_NOTHING:
        return 0
    return num_chunks if options.policy == EXPAND_ALL else expansion_budget(options.expand_fraction, num_chunks)


def expands_all(options: ExpansionOptions, num_chunks: int) -> bool:
    """Return whether every chunk is read in full: the plain prompt, for which no vector is needed."""
    return budget_of(options, num_chunks) == num_chunks
