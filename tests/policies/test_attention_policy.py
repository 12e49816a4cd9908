"""The policy `attention`: what counts is what the question adds, in shares, whatever the place of a chunk."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refrag.model.attention_heads import Scoring
from refrag.model.similarity import spread
from refrag.policies.attention import combine, deviations, score_attended, shares_of_chunks
from refrag.policies.base import Candidates, ChunkAttention
from refrag.policies.select import select_chunks

NUM_HEADS, NUM_CHUNKS = 6, 40
PASSAGES = np.arange(NUM_CHUNKS) // 4
BY_ATTENTION_ALONE = Scoring(neighbours=0.0, passage=0.0, similarity=0.0)
NOTHING = torch.zeros(0, 0)


def make_attention(question, null, weights=None, similarities=None, scoring=BY_ATTENTION_ALONE):
    weights = np.ones(len(question)) if weights is None else weights
    similarities = np.zeros(question.shape[1]) if similarities is None else similarities
    return ChunkAttention(question, null, weights, similarities, scoring)


def draw_weights(seed):
    return np.random.default_rng(seed).random((NUM_HEADS, NUM_CHUNKS)) / NUM_CHUNKS


def select(attention, budget, passages=PASSAGES):
    return select_chunks("attention", Candidates(passages, NOTHING, NOTHING, attention=attention), budget).numbers


def test_a_chunk_that_the_question_looks_at_is_chosen_before_one_that_is_looked_at_anyway():
    null = draw_weights(0)
    null[:, 0] = 0.5
    question = null.copy()
    question[:, 23] *= 3
    assert select(make_attention(question, null), 1) == [23]


def test_it_is_shares_that_count_since_a_question_may_look_away_from_the_chunks():
    null = draw_weights(0)
    question = null.copy()
    question[:, 23] *= 3
    chosen = select(make_attention(question, null), 5)
    assert select(make_attention(0.01 * question, null), 5) == chosen


def test_a_head_that_counts_for_nothing_changes_nothing():
    null, question = draw_weights(0), draw_weights(1)
    weights = np.array([1.0, 2, 1, 1, 1, 0])
    chosen = select(make_attention(question, null, weights), 5)
    question[5] = draw_weights(2)[5]
    assert select(make_attention(question, null, weights), 5) == chosen


def test_no_head_decides_alone_however_far_one_of_its_chunks_stands_out():
    scores = np.zeros((NUM_HEADS, NUM_CHUNKS))
    scores[0, 7], scores[1:3, 23] = 1e6, 3.0
    combined = combine(scores, np.ones(NUM_HEADS), PASSAGES, np.zeros(NUM_CHUNKS), BY_ATTENTION_ALONE)
    assert combined.argmax() == 23


def test_heads_that_see_no_chunk_leave_the_choice_to_similarity():
    similarities = np.random.default_rng(0).random(NUM_CHUNKS)
    nowhere = np.zeros((NUM_HEADS, NUM_CHUNKS))
    scoring = Scoring(similarity=0.5, neighbours=0.0, passage=0.0)
    # All tie by attention, where the later rank is the higher.
    scores = score_attended(make_attention(nowhere, nowhere, None, similarities, scoring), PASSAGES)
    assert torch.isfinite(scores).all()
    by_similarity = Scoring(similarity=1.0)
    chosen = select(make_attention(nowhere, nowhere, None, similarities, by_similarity), 3)
    assert chosen == sorted(np.argsort(-similarities)[:3].tolist())


def test_neighbours_lend_each_other_their_scores_within_a_passage_alone():
    scores, passages = torch.tensor([0.0, 0, 8, 0, 0, 0]), torch.tensor([0, 0, 0, 1, 1, 1])
    lent = spread(scores, passages, 0.5, 0.0)
    # The chunk in the middle of the passage has two neighbours, of which one scores.
    assert lent.tolist() == [0, 2, 8, 0, 0, 0]
    raised = spread(scores, passages, 0.0, 0.25)
    assert raised.tolist() == [2, 2, 10, 0, 0, 0]


@given(st.integers(0, 1000), st.integers(1, NUM_CHUNKS - 1))
def test_the_budget_is_spent_whatever_is_seen(seed, budget):
    attention = make_attention(draw_weights(seed), draw_weights(seed + 1), None, draw_weights(seed)[0], Scoring())
    assert len(select(attention, budget)) == budget


def test_shares_of_the_attention_add_up_to_one():
    question = draw_weights(0)
    question[2] = 0.0
    attention = make_attention(question, draw_weights(1), np.array([1.0, 2, 3, 4, 5, 6]))
    shares = shares_of_chunks(attention)
    assert shares.sum() == pytest.approx(1)
    assert shares.min() >= 0


def test_a_head_that_sees_few_chunks_ranks_those():
    """Of 40 chunks it sees the last 12, as in a sliding window; its scores are those of a prompt of these alone."""
    null, question = draw_weights(0), draw_weights(1)
    null[:, :-12] = question[:, :-12] = 0
    scores = deviations(question, null)
    assert not scores[:, :-12].any()
    assert len(np.unique(scores[:, -12:].clip(-4, 4))) > 6 * 8
    assert deviations(np.zeros((2, 5)), np.zeros((2, 5))).tolist() == [[0.0] * 5] * 2
