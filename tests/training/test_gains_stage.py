"""Gains held by equality with the decoder's own losses, and the policy's loss with its definition."""

import random
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from minimising import minimise
from torch.nn import functional

from refrag.teacher_forcing.batches import MixedExample, collate_mixed, encoder_batch, question_segments
from refrag.teacher_forcing.predict import encode, predict
from refrag.training.settings import Gains, Optimisation
from refrag.training.stages.gains import GainLearning, GainSource, choose_candidates, gain_loss

SETTINGS = Gains(
    stage="gains",
    optimisation=Optimisation(num_steps=1, learning_rate=1e-3),
    tokens_per_step=300,
    max_passages=3,
    num_candidates=4,
)


@pytest.fixture
def checkpoint(tiny_checkpoint):
    return replace(tiny_checkpoint, policy=deepcopy(tiny_checkpoint.policy))


@pytest.fixture
def batch(checkpoint):
    return GainSource(checkpoint, SETTINGS).draw(random.Random(0), 0.0)


def loss_of(checkpoint, context, expanded):
    """Return the answer's loss with these chunks expanded, from a batch of its own."""
    example = MixedExample(context.chunks, expanded, question_segments(context.questions[0]))
    vectors = encode(checkpoint.encoder, encoder_batch(checkpoint.chunker, context.chunks))
    mixed = collate_mixed([example], checkpoint.decoder.vocab_size, checkpoint.chunker.frame.head_ids)
    return predict(checkpoint.decoder, mixed, checkpoint.projector(vectors)).losses.mean()


@torch.no_grad()
def test_a_gain_is_what_expanding_a_chunk_takes_off_the_answers_loss(checkpoint, batch):
    weighed = GainLearning(checkpoint, SETTINGS)(batch, rollout_seed=0)
    for context, candidates, gains in zip(batch.contexts, weighed.candidates.tolist(), weighed.gains, strict=True):
        nothing = loss_of(checkpoint, context, [])
        for candidate, gain in zip(candidates, gains, strict=True):
            if candidate >= 0:
                torch.testing.assert_close(gain, nothing - loss_of(checkpoint, context, [candidate]), atol=1e-4, rtol=0)


def test_candidates_differ_and_hold_the_likeliest_and_the_evidence():
    logits = torch.tensor([0.0, 5.0, 1.0, 4.0, 2.0, 3.0, -1.0, -2.0, -3.0])
    for seed in range(20):
        chosen = choose_candidates(random.Random(seed), logits, [8, 7], 6)
        assert len(set(chosen)) == 6
        assert chosen[:4] == [1, 3, 5, 8]
    assert sorted(choose_candidates(random.Random(0), logits[:3], [], 6)) == [0, 1, 2]


def test_the_loss_is_the_divergence_over_the_candidates_alone():
    logits = torch.tensor([[9.0, 0.5, -1.0, 2.0], [0.0, 1.0, float("-inf"), float("-inf")]], requires_grad=True)
    candidates, gains = torch.tensor([[3, 1, 2], [1, 0, -1]]), torch.tensor([[0.2, 1.0, -0.3], [0.0, 0.4, 0.0]])
    loss, gain = gain_loss(logits, candidates, gains, temperature=0.5)
    expected = [
        functional.kl_div(
            logits[row, candidates[row, :count]].log_softmax(0), (gains[row, :count] / 0.5).softmax(0), reduction="sum"
        )
        for row, count in ((0, 3), (1, 2))
    ]
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    assert gain == pytest.approx((0.2 + 0.0) / 2)
    loss.backward()
    assert logits.grad.isfinite().all()


def test_the_policy_learns_to_prefer_what_gains(checkpoint, batch):
    objective = GainLearning(checkpoint, SETTINGS)
    weighed = objective(batch, rollout_seed=0)
    # Gains that no prompt gives: the last candidate is worth much.
    gains = torch.zeros_like(weighed.gains)
    gains[:, -1] = 3.0
    weighed = replace(weighed, gains=gains)
    assert minimise(objective, weighed, num_steps=80, learning_rate=3e-3)[-1]["gain"] > 2.5
