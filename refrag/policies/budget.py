"""How many chunks a request expands."""

import math

from refrag.request import ExpansionOptions


def expansion_budget(expand_fraction: float, num_chunks: int) -> int:
    """How many chunks may be expanded: rounded down, so never more than the fraction; 0 expands nothing."""
    # A fraction travels as FP32: 0.7 arrives as 0.69999999, and six digits bring it back.
    return math.floor(round(expand_fraction, 6) * num_chunks + 1e-9)


def expands_all(options: ExpansionOptions, num_chunks: int) -> bool:
    """Whether every chunk is read in full: the plain prompt, for which no vector is needed."""
    if options.policy == "none":
        return num_chunks == 0
    return options.policy == "all" or expansion_budget(options.expand_fraction, num_chunks) == num_chunks
