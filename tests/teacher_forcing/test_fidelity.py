"""Fidelity equals what is worked out by hand, and the plain decoder is wholly faithful to itself."""

import math

import pytest
import torch

from refrag.teacher_forcing import distribution
from refrag.teacher_forcing.distribution import TopDistribution
from refrag.teacher_forcing.fidelity import compare_with_plain


def logits(*rows):
    return torch.tensor(rows).log()


def test_the_divergence_is_over_the_likeliest_tokens_and_the_rest_as_one(monkeypatch):
    monkeypatch.setattr(distribution, "NUM_LIKELIEST", 2)
    plain = TopDistribution.of(logits([0.6, 0.2, 0.1, 0.1]))
    result = compare_with_plain(plain, logits([0.3, 0.2, 0.4, 0.1]))
    # 0.6 ln(0.6/0.3) + 0.2 ln(0.2/0.2) + 0.2 ln(0.2/0.5)
    assert result.divergence == pytest.approx(0.6 * math.log(2) + 0.2 * math.log(0.4), abs=1e-6)
    assert result.agreement == 0


def test_means_are_taken_over_the_tokens(monkeypatch):
    monkeypatch.setattr(distribution, "NUM_LIKELIEST", 1)
    plain = TopDistribution.of(logits([0.5, 0.3, 0.2], [0.2, 0.2, 0.6]))
    result = compare_with_plain(plain, logits([0.5, 0.2, 0.3], [0.1, 0.8, 0.1]))
    second = 0.6 * math.log(0.6 / 0.1) + 0.4 * math.log(0.4 / 0.9)
    assert result.divergence == pytest.approx(second / 2, abs=1e-6)
    assert result.agreement == 0.5


def test_a_decoder_is_faithful_to_itself():
    values = torch.randn(5, 200, generator=torch.Generator().manual_seed(0))
    result = compare_with_plain(TopDistribution.of(values), values)
    assert (result.divergence, result.agreement) == (0, 1)


def test_a_distribution_that_is_certain_gives_a_finite_divergence():
    certain = torch.full((1, 60), -200.0).index_fill(1, torch.tensor([3]), 200.0)
    result = compare_with_plain(TopDistribution.of(certain), certain.roll(1, dims=1))
    assert math.isfinite(result.divergence) and result.divergence > 100
