"""Intervals: Wilson's for shares, the bootstrap for means and for differences over the same questions."""

import math
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 2000
BLOCK_VALUES = 2**18
NORMAL_QUANTILE = 1.96  # of 95%


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def estimate_share(hits: np.ndarray) -> Estimate:
    low, high = wilson_interval(int(hits.sum()), len(hits))
    return _rounded(hits.mean(), low, high)


def estimate_mean(values: np.ndarray, seed: int) -> Estimate:
    """The mean with the percentile bootstrap's interval."""
    rng, count = np.random.default_rng(seed), len(values)
    # In blocks: all resamples of thousands of questions at once would be gigabytes.
    rows = max(1, BLOCK_VALUES // count)
    blocks = [min(rows, NUM_RESAMPLES - start) for start in range(0, NUM_RESAMPLES, rows)]
    means = [values[rng.integers(count, size=(block, count))].mean(1) for block in blocks]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return _rounded(values.mean(), low, high)


def estimate_difference(values: np.ndarray, others: np.ndarray, seed: int) -> Estimate:
    """Mean of values − others, paired: the same questions, resampled together."""
    if len(values) != len(others):
        raise ValueError(f"{len(values)} values and {len(others)} others cannot be paired; ask both the same questions")
    return estimate_mean(values.astype(float) - others.astype(float), seed)


def wilson_interval(hits: int, total: int) -> tuple[float, float]:
    """95% confidence interval of a share (Wilson's score interval)."""
    z, share = NORMAL_QUANTILE, hits / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def _rounded(value: float, low: float, high: float) -> Estimate:
    return Estimate(round(float(value), 4), round(float(low), 4), round(float(high), 4))
