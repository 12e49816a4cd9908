"""95% intervals: Wilson's for shares, Newcombe's for their paired differences, the bootstrap for all other means."""

import math
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 2000
BLOCK_VALUES = 2**18
NORMAL_QUANTILE = 1.96  # two-sided, for 95%


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95% interval."""

    value: float
    low: float
    high: float


def estimate_share(hits: np.ndarray) -> Estimate:
    low, high = wilson_interval(int(hits.sum()), len(hits))
    return _rounded(hits.mean(), low, high)


def estimate_share_difference(hits: np.ndarray, others: np.ndarray) -> Estimate:
    """Return the share of hits minus that of the others on the same questions (Newcombe 1998, method 10, paired).

    Unlike the bootstrap's, the interval keeps a width where the two differ on few questions or on none.
    """
    _refuse_unpaired(hits, others)
    count, share, other = len(hits), hits.mean(), others.mean()
    (low, high), (other_low, other_high) = (wilson_interval(int(each.sum()), count) for each in (hits, others))
    phi = _paired_correlation(hits, others)
    below, other_above = share - low, other_high - other
    above, other_below = high - share, other - other_low
    down = math.sqrt(max(0.0, below**2 - 2 * phi * below * other_above + other_above**2))
    up = math.sqrt(max(0.0, above**2 - 2 * phi * above * other_below + other_below**2))
    return _rounded(share - other, share - other - down, share - other + up)


def estimate_mean(values: np.ndarray, seed: int) -> Estimate:
    """Return the mean with the percentile bootstrap's interval."""
    rng, count = np.random.default_rng(seed), len(values)
    # In blocks: all resamples of thousands of questions at once would take gigabytes.
    rows = max(1, BLOCK_VALUES // count)
    blocks = [min(rows, NUM_RESAMPLES - start) for start in range(0, NUM_RESAMPLES, rows)]
    means = [values[rng.integers(count, size=(block, count))].mean(1) for block in blocks]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return _rounded(values.mean(), low, high)


def estimate_difference(values: np.ndarray, others: np.ndarray, seed: int) -> Estimate:
    """Return the mean of values − others on the same questions, which are resampled in pairs."""
    _refuse_unpaired(values, others)
    return estimate_mean(values.astype(float) - others.astype(float), seed)


def estimate_recovery(values: np.ndarray, lower: np.ndarray, upper: np.ndarray, seed: int) -> Estimate | None:
    """Return (values − lower) / (upper − lower) in means over the same questions, which are resampled together.

    None unless at least 97.5% of the resamples keep the bounds apart in their own order: between bounds that may be
    equal, nothing can be recovered.
    """
    _refuse_unpaired(values, lower)
    _refuse_unpaired(values, upper)
    columns = np.stack([values, lower, upper]).astype(float)
    rng, count = np.random.default_rng(seed), len(values)
    means = np.stack([columns[:, rng.integers(count, size=count)].mean(1) for _ in range(NUM_RESAMPLES)], 1)
    value, low, high = columns.mean(1)
    apart = (means[2] - means[1]) * np.sign(high - low) > 0
    if apart.mean() < 0.975:
        return None
    shares = (means[0] - means[1])[apart] / (means[2] - means[1])[apart]
    return _rounded((value - low) / (high - low), *np.percentile(shares, [2.5, 97.5]))


def wilson_interval(hits: int, total: int) -> tuple[float, float]:
    """Return the 95% confidence interval of a share (Wilson's score interval)."""
    z, share = NORMAL_QUANTILE, hits / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def _paired_correlation(hits: np.ndarray, others: np.ndarray) -> float:
    """Return phi of two columns of hits with Newcombe's correction for continuity; 0 if either is constant."""
    count = len(hits)
    both, neither = int((hits & others).sum()), int((~hits & ~others).sum())
    one, other = int((hits & ~others).sum()), int((~hits & others).sum())
    excess = both * neither - one * other
    scale = math.sqrt((both + one) * (other + neither) * (both + other) * (one + neither))
    return (max(0.0, excess - count / 2) if excess > 0 else excess) / scale if scale else 0.0


def _refuse_unpaired(values: np.ndarray, others: np.ndarray) -> None:
    if len(values) != len(others):
        raise ValueError(f"{len(values)} values and {len(others)} others cannot be paired; ask both the same questions")


def _rounded(value: float, low: float, high: float) -> Estimate:
    return Estimate(round(float(value), 4), round(float(low), 4), round(float(high), 4))
