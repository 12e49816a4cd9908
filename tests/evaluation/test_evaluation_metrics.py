import numpy as np
import pytest

from refrag.evaluation.metrics import TEXT_METRICS, score_text, word_f1
from refrag.evaluation.statistics import estimate_difference, estimate_mean, estimate_share, wilson_interval


def test_words_count_whatever_their_order_case_and_articles():
    assert word_f1("The Blue, house", "house blue") == 1.0
    assert word_f1("blue house", "blue mill") == 0.5
    assert word_f1("", "blue") == 0.0


def test_the_expected_text_scores_one_in_everything():
    assert score_text("teal", "teal") == dict.fromkeys(TEXT_METRICS, 1.0)


def test_rouge_l_sees_the_order_that_rouge_1_does_not():
    scores = score_text("one two three", "three two one")
    assert scores["rouge_1"] == 1.0
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
