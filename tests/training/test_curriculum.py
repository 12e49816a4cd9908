"""The geometric schedule against the paper's Table 8, and what is drawn by it."""

import itertools
import random
from collections import Counter

import pytest

from refrag.training.curriculum import (
    batch_shares,
    chunk_count_weights,
    draw_num_chunks,
    passage_counts,
    sample_shares,
    stage_shares,
)
from refrag.training.settings import Curriculum

PAPER = Curriculum(stage_lengths="samples")
NUM_SAMPLES = 2000


def column(number):
    """Return how many of NUM_SAMPLES have the `number`-th number of chunks, stage after stage."""
    return [NUM_SAMPLES * shares[number] for shares in sample_shares(PAPER)]


def test_samples_of_one_chunk_are_those_of_the_papers_table():
    # Its ratio, .333, is rounded.
    assert column(0)[:4] == pytest.approx([1333.3, 444.4, 148.1, 49.4], rel=5e-3)


@pytest.mark.parametrize("number", range(9))
def test_each_number_of_chunks_has_as_many_samples_as_the_others_in_a_geometric_row(number):
    samples = column(number)
    assert sum(samples) == pytest.approx(NUM_SAMPLES)
    for before, after in itertools.pairwise(samples):
        assert after / before == pytest.approx(PAPER.ratios[number])


def test_by_samples_the_stages_are_as_long_as_their_samples_take():
    """Batches hold a fixed number of tokens, so samples of c chunks take c times as many; all c have equally many."""
    samples = [share / num for share, num in zip(batch_shares(PAPER), PAPER.num_chunks, strict=True)]
    assert samples == pytest.approx([samples[0]] * 9)
    lengths = stage_shares(PAPER)
    assert sum(lengths) == pytest.approx(1)
    assert lengths[0] < 0.01
    assert lengths[-1] > 0.5


def test_with_one_sample_per_batch_steps_count_samples():
    assert batch_shares(PAPER, lambda num_chunks: 1) == pytest.approx([1 / 9] * 9)


@pytest.mark.parametrize("lengths", ["equal", "samples"])
def test_the_first_stage_is_nearly_all_short_and_the_last_mostly_long(lengths):
    curriculum = Curriculum(stage_lengths=lengths)
    samples = [chunk_count_weights(curriculum, progress, lambda num_chunks: 1) for progress in (0.0, 0.999)]
    assert sum(samples[0][:3]) > 0.9
    assert sum(samples[1][6:]) > 0.5
    batches = chunk_count_weights(curriculum, 0.999)
    assert sum(batches[6:]) > 0.85


def test_equal_stages_change_where_progress_says():
    curriculum = Curriculum(num_chunks=[1, 2], ratios=[0.5, 2.0], num_stages=2)
    halves = [chunk_count_weights(curriculum, progress) for progress in (0.0, 0.49, 0.51, 1.0)]
    assert halves[0] == halves[1] == pytest.approx([1 / 2, 1 / 2])
    assert halves[2] == halves[3] == pytest.approx([1 / 5, 4 / 5])


@pytest.mark.parametrize("progress", [0.0, 0.5, 0.99])
def test_draws_follow_the_weights(progress):
    rng, num_draws = random.Random(0), 1500
    drawn = Counter(draw_num_chunks(rng, Curriculum(), progress) for _ in range(num_draws))
    for num_chunks, weight in zip(Curriculum().num_chunks, chunk_count_weights(Curriculum(), progress), strict=True):
        assert drawn[num_chunks] / num_draws == pytest.approx(weight, abs=0.04)


def test_one_entry_is_no_curriculum():
    only = Curriculum(num_chunks=[16], ratios=[1.0])
    assert {draw_num_chunks(random.Random(seed), only, seed / 9) for seed in range(9)} == {16}


def test_passages_are_one_first_and_in_the_end_up_to_all():
    assert [passage_counts(10, progress) for progress in (0.0, 0.3, 0.67, 1.0)] == [
        range(1, 2),
        range(1, 5),
        range(1, 11),
        range(1, 11),
    ]
