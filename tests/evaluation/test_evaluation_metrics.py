import numpy as np
import pytest

from refrag.evaluation.answers import TEXT_METRICS, Answers, answer_difference, score_text
from refrag.evaluation.conditions import Condition
from refrag.evaluation.statistics import (
    estimate_difference,
    estimate_mean,
    estimate_recovery,
    estimate_share,
    estimate_share_difference,
    wilson_interval,
)


def test_f1_counts_words_whatever_their_order_case_and_punctuation():
    assert score_text("Blue, house", "house blue")["f1"] == 1.0
    assert score_text("blue house", "blue mill")["f1"] == 0.5
    assert score_text("", "blue")["f1"] == 0.0


def test_the_expected_text_scores_one_in_everything():
    assert score_text("teal", "teal") == dict.fromkeys(TEXT_METRICS, 1.0)


def test_rouge_l_sees_the_order_that_f1_does_not():
    scores = score_text("one two three", "three two one")
    assert scores["f1"] == 1.0
    assert scores["rouge_l"] == pytest.approx(1 / 3)
    assert scores["rouge_2"] == 0.0


def test_the_interval_holds_the_share_and_narrows_with_more_questions():
    low, high = wilson_interval(30, 100)
    assert low < 0.3 < high
    wide, narrow = high - low, (lambda pair: pair[1] - pair[0])(wilson_interval(300, 1000))
    assert narrow < wide / 2
    assert wilson_interval(0, 10)[0] == 0 and wilson_interval(10, 10)[1] == 1
    assert estimate_share(np.array([True, False])).value == 0.5


def test_the_bootstrap_is_the_normal_interval_where_that_holds():
    values = np.random.default_rng(0).normal(5, 2, size=400)
    estimate = estimate_mean(values, seed=0)
    half = 1.96 * values.std() / 20
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.03)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.03)
    assert estimate == estimate_mean(values, seed=0)


def test_a_paired_difference_is_surer_than_its_two_sides():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 5, size=200)
    difference = estimate_difference(hard + 0.5 + rng.normal(0, 0.1, size=200), hard, seed=0)
    assert 0.4 < difference.low < 0.5 < difference.high < 0.6


def test_different_questions_are_not_paired():
    with pytest.raises(ValueError, match="same questions"):
        estimate_difference(np.zeros(3), np.zeros(2), seed=0)


def paired(both, one, other, neither):
    hits = [True] * (both + one) + [False] * (other + neither)
    others = [True] * both + [False] * one + [True] * other + [False] * neither
    return np.array(hits), np.array(others)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        # Examples of his paper.
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((20, 12, 2, 16), 0.0562, 0.3292),
        # Nothing tells the two apart: as sure as fifty questions can make it.
        ((50, 0, 0, 0), -0.0714, 0.0714),
    ],
)
def test_the_difference_of_paired_shares_has_newcombes_interval(counts, low, high):
    estimate = estimate_share_difference(*paired(*counts))
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-4)


def test_differences_are_of_the_first_against_the_second_over_the_asked_tasks():
    """Three of four facts right against one, and no exact string against one; answers surer by two nats."""
    tasks = np.array(["fact"] * 4 + ["exact"] * 4)
    nothing = np.zeros(8)

    def answers(name, is_right, log_perplexity):
        right, losses = np.array(is_right, dtype=bool), np.full(8, log_perplexity)
        return Answers(name, Condition("full"), tasks, right, losses, nothing, nothing, nothing, {})

    one = answers("one", [1, 1, 1, 0, 0, 0, 0, 0], 1.0)
    other = answers("other", [1, 0, 0, 0, 1, 0, 0, 0], 3.0)
    rows = [
        answer_difference(one, other, "exact_match", seed=0),
        answer_difference(one, other, "exact_match", seed=0, tasks=["fact"]),
        answer_difference(one, other, "exact_match", seed=0, tasks=["exact"]),
        answer_difference(one, other, "exact_match", seed=0, tasks=["fact", "exact", "multihop"]),
        answer_difference(one, other, "log_perplexity", seed=0),
    ]
    assert [row["difference"]["value"] for row in rows] == [0.125, 0.5, -0.25, 0.125, -2.0]
    assert all((row["name"], row["against"]) == ("one", "other") for row in rows)


def test_recovery_is_the_share_of_the_way_between_two_bounds_whichever_is_higher():
    rng = np.random.default_rng(0)
    hard = rng.normal(5, 3, size=300)
    none, plain = hard + 4, hard + rng.normal(0, 0.1, size=300)
    estimate = estimate_recovery(hard + 1, none, plain, seed=0)
    assert estimate.value == pytest.approx(0.75, abs=0.01)
    assert estimate.low < estimate.value < estimate.high < estimate.low + 0.02
    assert estimate_recovery(-hard - 1, -none, -plain, seed=0).value == pytest.approx(estimate.value, abs=1e-3)


def test_between_bounds_that_may_be_equal_nothing_is_recovered():
    rng = np.random.default_rng(0)
    values, none, plain = rng.normal(size=(3, 50))
    assert estimate_recovery(values, none, plain, seed=0) is None
    assert estimate_recovery(values, none, none, seed=0) is None
