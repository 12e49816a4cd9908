"""A policy that is not sure enough has its budget raised once: to what is asked for, and never beyond the room."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refrag.errors import InvalidRequest
from refrag.model.policy import ExpansionPolicy
from refrag.policies.base import Candidates, Selection, TrainedPolicy
from refrag.policies.budget import budget_of, fallback_of
from refrag.policies.select import is_chosen_by_decoder, raise_budget, select_chunks
from refrag.request import ExpansionOptions, Fallback

PASSAGES = np.array([number // 3 for number in range(12)])
LENGTHS = np.array([4, 4, 2] * 4)
VECTORS, QUESTION = torch.randn(12, 8).abs(), torch.randn(2, 8).abs()


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return ExpansionPolicy(8, width=16).eval()


def select(network, num_slots=4096, confidence=1.0, **options):
    chosen = ExpansionOptions(**options)
    budget = budget_of(chosen, LENGTHS, num_other_slots=9, window=4096)
    fallback = fallback_of(chosen, budget, LENGTHS, 9, num_slots)
    candidates = Candidates(PASSAGES, VECTORS, QUESTION, TrainedPolicy(network, confidence), chosen.seed)
    return select_chunks(chosen.policy, candidates, budget, fallback)


def confidence_of(selection):
    weights = selection.weights.astype(np.float64)
    return weights[list(selection.numbers)].sum() / weights.sum()


selections = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40).flatmap(
    lambda weights: st.builds(
        lambda numbers: Selection(sorted(numbers), np.array(weights, np.float32)),
        st.sets(st.integers(0, len(weights) - 1)),
    )
)


@given(selections, st.floats(0, 1, width=32), st.integers(1, 40))
def test_what_was_selected_stays_and_the_raised_budget_holds(selection, min_confidence, budget):
    raised = raise_budget(selection, Fallback(min_confidence, budget))
    assert set(selection.numbers) <= set(raised.numbers)
    assert list(raised.numbers) == sorted(set(raised.numbers))
    assert len(raised.numbers) <= max(len(selection.numbers), budget)


@given(selections.filter(lambda each: each.weights.sum() > 1e-3), st.floats(2**-10, 1, width=32))
def test_with_room_for_all_chunks_the_confidence_is_reached_by_as_few_as_can_be(selection, min_confidence):
    raised = raise_budget(selection, Fallback(min_confidence, len(selection.weights)))
    assert confidence_of(raised) >= min_confidence - 1e-9
    added = sorted(set(raised.numbers) - set(selection.numbers), key=lambda number: raised.weights[number])
    if added:
        fewer = Selection([number for number in raised.numbers if number != added[0]], raised.weights)
        assert confidence_of(fewer) < min_confidence + 1e-9


def test_the_heaviest_are_added_and_of_equals_the_first():
    selection = Selection([1], np.array([2, 1, 3, 2, 2], np.float32))
    assert [raise_budget(selection, Fallback(share, 5)).numbers for share in (0.1, 0.4, 0.6, 0.8, 1.0)] == [
        [1],
        [1, 2],
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
    ]


def test_where_nothing_weighs_anything_the_raised_budget_is_spent():
    assert raise_budget(Selection([3], np.zeros(5, np.float32)), Fallback(0.1, 3)).numbers == [0, 1, 3]


@pytest.mark.parametrize("policy", ["learned", "similarity", "neighbourhood"])
@pytest.mark.parametrize("fraction", [0, 0.1, 0.5])
@pytest.mark.parametrize("min_confidence", [0.2, 0.7, 0.95, 1.0])
def test_a_policy_that_weighs_chunks_reaches_what_is_asked_for(network, policy, fraction, min_confidence):
    options = {"policy": policy, "expand_fraction": fraction}
    usual, raised = select(network, **options), select(network, **options, min_confidence=min_confidence)
    assert set(usual.numbers) <= set(raised.numbers)
    assert confidence_of(raised) >= min_confidence - 1e-6
    if usual.numbers and confidence_of(usual) >= min_confidence:
        assert raised.numbers == usual.numbers


@pytest.mark.parametrize("policy", ["random", "none", "all"])
@pytest.mark.parametrize("fraction", [0, 0.5])
def test_a_policy_that_weighs_nothing_ignores_it(network, policy, fraction):
    options = {"policy": policy, "expand_fraction": fraction}
    assert select(network, **options, min_confidence=1.0).numbers == select(network, **options).numbers


def test_a_policy_that_stops_early_goes_on_for_who_wants_to_be_surer(network):
    options = {"policy": "learned", "expand_fraction": 1 - 1 / 12, "confidence": 0.3}
    assert (
        confidence_of(select(network, **options)) < 0.7 <= confidence_of(select(network, **options, min_confidence=0.7))
    )


def test_one_chunk_is_expanded_for_who_wants_to_be_sure(network):
    alone = Candidates(PASSAGES[:1], VECTORS[:1], QUESTION, TrainedPolicy(network))
    assert select_chunks("learned", alone, 0, Fallback(0.5, 1)).numbers == [0]
    assert select_chunks("random", alone, 0, Fallback(0.5, 1)).numbers == []


def test_no_chunks_and_no_room_have_nothing_to_raise():
    options = ExpansionOptions(0.0, min_confidence=1.0)
    assert fallback_of(options, 0, LENGTHS[:0], 9, 4096) is None
    assert fallback_of(options, 0, LENGTHS, 9, num_slots=21) is None
    assert fallback_of(options, 0, LENGTHS, 9, num_slots=5) is None


@given(
    lengths=st.lists(st.integers(2, 16), min_size=1, max_size=40).map(np.array),
    num_other_slots=st.integers(1, 30),
    num_slots=st.integers(1, 600),
    max_prompt_slots=st.one_of(st.none(), st.integers(80, 400)),
    fraction=st.floats(0, 1),
)
def test_a_raised_prompt_has_room_whichever_chunks_it_expands(
    lengths, num_other_slots, num_slots, max_prompt_slots, fraction
):
    options = ExpansionOptions(fraction, "learned", max_prompt_slots=max_prompt_slots, min_confidence=1.0)
    budget = budget_of(options, lengths, num_other_slots, window=600)
    fallback = fallback_of(options, budget, lengths, num_other_slots, num_slots)
    if fallback is None or fallback.budget == budget:
        return
    assert budget < fallback.budget <= len(lengths)
    longest = sorted((int(length) - 1 for length in lengths), reverse=True)
    slots = num_other_slots + len(lengths) + sum(longest[: fallback.budget])
    assert slots <= min(num_slots, max_prompt_slots or num_slots)
    assert fallback.budget == len(lengths) or slots + longest[fallback.budget] > min(
        num_slots, max_prompt_slots or num_slots
    )


def test_the_decoder_chooses_also_where_only_the_raised_budget_has_any():
    assert is_chosen_by_decoder("attention", 0, 12, Fallback(0.5, 3))
    assert not is_chosen_by_decoder("attention", 12, 12, Fallback(0.5, 12))
    assert not is_chosen_by_decoder("similarity", 0, 12, Fallback(0.5, 3))


@pytest.mark.parametrize("min_confidence", [-0.1, 1.01, float("nan"), float("inf")])
def test_a_confidence_that_is_no_share_is_refused(min_confidence):
    for make in (lambda: ExpansionOptions(min_confidence=min_confidence), lambda: Fallback(min_confidence, 3)):
        with pytest.raises(InvalidRequest, match=f"min_confidence is {min_confidence}; allowed is 0 .* to 1"):
            make()
