"""Schedules of how hard examples are: numbers of chunks as in the paper's geometric one, and numbers of passages."""

import itertools
import random
from collections.abc import Callable

from refrag.training.settings import Curriculum

# S stages, N numbers of chunks


def by_tokens(num_chunks: int) -> float:
    """Return the samples in a batch that holds a fixed number of tokens, up to a constant factor."""
    return 1 / num_chunks


def sample_shares(curriculum: Curriculum) -> list[list[float]]:
    """Return for each number of chunks what share of its samples each stage has: a·r^j (paper, Table 8).  (S, N)

    All numbers of chunks have the same number of samples in all.
    """
    stages = range(curriculum.num_stages)
    ratios = curriculum.ratios[: len(curriculum.num_chunks)]
    totals = [sum(ratio**stage for stage in stages) for ratio in ratios]
    return [[ratio**stage / total for ratio, total in zip(ratios, totals, strict=True)] for stage in stages]


def stage_shares(curriculum: Curriculum, samples_per_batch: Callable[[int], float] = by_tokens) -> list[float]:
    """Return the share of the training's steps that each stage takes.  (S,)"""
    if curriculum.stage_lengths == "equal":
        return [1 / curriculum.num_stages] * curriculum.num_stages
    steps = [sum(each) for each in _num_batches(curriculum, samples_per_batch)]
    return _normalised(steps)


def chunk_count_weights(
    curriculum: Curriculum, progress: float, samples_per_batch: Callable[[int], float] = by_tokens
) -> list[float]:
    """Return what share of the batches at this progress each of the curriculum's numbers of chunks has.  (N,)"""
    ends = itertools.accumulate(stage_shares(curriculum, samples_per_batch))
    stage = min(curriculum.num_stages - 1, sum(progress >= end for end in ends))
    return _normalised(_num_batches(curriculum, samples_per_batch)[stage])


def batch_shares(curriculum: Curriculum, samples_per_batch: Callable[[int], float] = by_tokens) -> list[float]:
    """Return what share of all batches of the training each of the curriculum's numbers of chunks has.  (N,)"""
    stages = zip(stage_shares(curriculum, samples_per_batch), _num_batches(curriculum, samples_per_batch), strict=True)
    weighted = [[length * share for share in _normalised(batches)] for length, batches in stages]
    return [sum(each) for each in zip(*weighted, strict=True)]


def draw_num_chunks(
    rng: random.Random,
    curriculum: Curriculum,
    progress: float,
    samples_per_batch: Callable[[int], float] = by_tokens,
) -> int:
    """Draw the number of chunks of a batch's examples, by chunk_count_weights."""
    return rng.choices(curriculum.num_chunks, chunk_count_weights(curriculum, progress, samples_per_batch))[0]


def passage_counts(max_passages: int, progress: float) -> range:
    """Return the equally likely numbers of passages; the largest grows until two thirds of the training are over."""
    return range(1, 1 + max(1, round(max_passages * min(1.0, progress * 1.5))))


def _num_batches(curriculum: Curriculum, samples_per_batch: Callable[[int], float]) -> list[list[float]]:
    """Return how many batches of each number of chunks each stage has, up to a constant factor.  (S, N)

    The fewer samples a batch holds, the more batches they take.
    """
    sizes = [samples_per_batch(num_chunks) for num_chunks in curriculum.num_chunks]
    return [[share / size for share, size in zip(shares, sizes, strict=True)] for shares in sample_shares(curriculum)]


def _normalised(values: list[float]) -> list[float]:
    return [value / sum(values) for value in values]
