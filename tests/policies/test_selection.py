"""Every policy keeps its promises, and the built-in ones select the right chunks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from refrag.config import RefragConfig
from refrag.errors import CheckpointError, InvalidRequest, RefragError
from refrag.model.policy import ExpansionPolicy, pick_in_turn, with_neighbours
from refrag.model.policy_file import load_policy_file
from refrag.model.similarity import rank, similarities
from refrag.policies import POLICIES
from refrag.policies.base import Candidates, Policy, TrainedPolicy
from refrag.policies.budget import budget_of, expansion_budget
from refrag.policies.learned import score_chunks
from refrag.policies.select import is_chosen_by_decoder, open_trained_policy, select_chunks
from refrag.request import ExpansionOptions

PASSAGES = np.array([number // 3 for number in range(12)])
LENGTHS = np.array([4, 4, 2] * 4)
VECTORS, QUESTION = torch.randn(12, 8), torch.randn(2, 8)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return ExpansionPolicy(8, width=16).eval()


def select(network, seed=0, **options):
    trained, chosen = None if network is None else TrainedPolicy(network), ExpansionOptions(**options)
    budget = budget_of(chosen, LENGTHS, num_other_slots=9, window=4096)
    return list(select_chunks(chosen.policy, Candidates(PASSAGES, VECTORS, QUESTION, trained, seed), budget).numbers)


@pytest.fixture
def offered(monkeypatch):
    """Adds a policy to the table, by name and function."""

    def add(name, select, needs="nothing"):
        monkeypatch.setitem(POLICIES._entries, name, None)
        monkeypatch.setitem(POLICIES._loaded, name, Policy("as the test says", needs, select))

    return add


@given(st.floats(0, 1), st.integers(0, 5000))
def test_the_budget_is_never_exceeded(fraction, num_chunks):
    assert expansion_budget(fraction, num_chunks) <= fraction * num_chunks + 0.01


@pytest.mark.parametrize(
    "fraction, num_chunks, budget", [(0.1, 10, 1), (0.1, 9, 0), (0.7, 10, 7), (0, 99, 0), (1, 7, 7)]
)
def test_the_budget_rounds_down(fraction, num_chunks, budget):
    assert expansion_budget(fraction, num_chunks) == budget


def test_similarity_takes_the_chunks_nearest_to_the_question_by_angle():
    vectors = torch.tensor([[0.0, 2.0], [3.0, 0.1], [1.0, 1.0]])
    assert rank(similarities(vectors, torch.tensor([[5.0, 0.0]]))) == [1, 2, 0]
    # Each part of a long question counts alike, however long its vector is.
    assert rank(similarities(vectors, torch.tensor([[50.0, 0.0], [0.0, 1.0]]))) == [2, 1, 0]


def test_of_chunks_with_the_same_text_the_first_is_nearest():
    vectors = torch.randn(1, 384).expand(41, 384)
    assert rank(similarities(vectors.contiguous(), torch.randn(3, 384))) == list(range(41))


def test_a_chunk_beside_others_like_the_question_goes_before_a_likelier_one_alone():
    cosines = torch.tensor([0.5, 0.6, 0.5, 0.7, -0.1, -0.1])
    vectors = torch.stack([cosines, (1 - cosines**2).sqrt()], 1)
    candidates = Candidates(np.array([0, 0, 0, 1, 1, 1]), vectors, torch.tensor([[1.0, 0.0]]))
    assert select_chunks("similarity", candidates, 1).numbers == [3]
    chosen = select_chunks("neighbourhood", candidates, 1)
    assert chosen.numbers == [1]
    assert chosen.weights.sum() == pytest.approx(1) and chosen.weights.argmax() == 1
    network = ExpansionPolicy(2, 8)
    logits = score_chunks(network, candidates.passages, vectors, candidates.question_vectors)
    assert chosen.weights == pytest.approx(logits.softmax(0).numpy(), abs=1e-6)
    assert select_chunks("neighbourhood", candidates, 3).numbers == [0, 1, 2]


def test_chunks_in_passages_of_their_own_have_no_neighbourhood():
    alone = Candidates(np.arange(12), VECTORS, QUESTION)
    picks = [select_chunks(policy, alone, 5).numbers for policy in ("similarity", "neighbourhood")]
    assert picks[0] == picks[1]


@pytest.mark.parametrize("policy", ["learned", "similarity", "neighbourhood", "random"])
@pytest.mark.parametrize("fraction, count", [(0, 0), (0.1, 1), (0.5, 6), (1, 12)])
def test_a_policy_spends_its_whole_budget_and_no_more(network, policy, fraction, count):
    chosen = select(network, policy=policy, expand_fraction=fraction)
    assert len(chosen) == len(set(chosen)) == count
    assert chosen == sorted(chosen)


def test_none_and_all_ignore_the_fraction(network):
    assert select(network, policy="none", expand_fraction=1) == []
    assert select(network, policy="all", expand_fraction=0) == list(range(12))


def test_random_picks_depend_on_the_seed_alone(network):
    picks = {seed: select(network, policy="random", expand_fraction=0.5, seed=seed) for seed in (1, 2)}
    assert picks[1] == select(network, policy="random", expand_fraction=0.5, seed=1) != picks[2]


@pytest.mark.parametrize("name", ["best", "Attention", ""])
def test_an_unknown_policy_is_refused_with_the_list(network, name):
    with pytest.raises(
        InvalidRequest,
        match=f"policy is '{name}'; allowed: learned, similarity, neighbourhood, attention, random, none, all",
    ):
        select(network, policy=name)


@pytest.mark.parametrize("policy", ["similarity", "neighbourhood", "random", "none", "all"])
def test_what_needs_no_training_is_served_without_a_network(network, policy):
    options = {"policy": policy, "expand_fraction": 0.5, "seed": 3}
    assert select(None, **options) == select(network, **options)


def test_a_trained_policy_is_refused_where_there_is_no_network():
    with pytest.raises(
        InvalidRequest,
        match=r"'learned' needs a trained network.*allowed: similarity, neighbourhood, attention, random, none, all",
    ):
        select(None, policy="learned", expand_fraction=0.5)


def test_a_checkpoint_without_a_network_must_name_a_default_that_needs_none():
    config = {"chunk_size": 8, "trained_chunk_sizes": [8], "max_prompt_slots": 64, "encoder_length": 8}
    assert open_trained_policy(RefragConfig(**config, policy="random"), None) is None
    with pytest.raises(
        CheckpointError,
        match=r"no policy.safetensors.*'learned' needs.*one of similarity, neighbourhood, attention, random, none, all",
    ):
        open_trained_policy(RefragConfig(**config), None)
    with pytest.raises(CheckpointError, match="a default policy that nobody offers: policy is 'best'"):
        open_trained_policy(RefragConfig(**config, policy="best"), None)


@pytest.mark.parametrize("picks", [[0, 1, 2, 3], [1, 1], [12], [-1]])
def test_what_a_policy_may_not_pick_is_refused_with_its_name(offered, picks):
    offered("odd", lambda candidates, budget: picks)
    with pytest.raises(RefragError, match=r"policy 'odd' selected .*; allowed are up to 3 different numbers below 12"):
        select(None, policy="odd", expand_fraction=0.25)


def test_a_policy_may_pick_less_than_its_budget_and_in_any_order(offered):
    offered("few", lambda candidates, budget: np.array([7, 2]))
    assert select(None, policy="few", expand_fraction=0.5) == [2, 7]


def test_a_policy_that_reads_attention_is_refused_by_name_where_it_was_not_read(offered):
    offered("watching", lambda candidates, budget: [0], needs="attention")
    with pytest.raises(InvalidRequest, match="'watching' needs the decoder's attention, which was not read"):
        select(None, policy="watching", expand_fraction=0.5)


def test_the_decoder_chooses_only_where_there_is_a_choice_and_the_policy_needs_its_attention():
    assert is_chosen_by_decoder("attention", 3, 12)
    assert not any(is_chosen_by_decoder("attention", budget, 12) for budget in (0, 12))
    assert not is_chosen_by_decoder("similarity", 3, 12)


@pytest.mark.parametrize(("fraction", "chosen"), [(0.0, []), (1.0, list(range(12)))])
def test_where_there_is_nothing_to_choose_no_policy_is_needed(fraction, chosen):
    assert select(None, policy="learned", expand_fraction=fraction) == chosen


def test_learned_picks_are_the_highest_logits(network):
    logits = score_chunks(network, PASSAGES, VECTORS, QUESTION)
    assert select(network, expand_fraction=0.25) == sorted(logits.topk(3).indices.tolist())


def test_no_chunks_need_no_selection(network):
    nothing = Candidates(PASSAGES[:0], VECTORS[:0], QUESTION, TrainedPolicy(network))
    assert select_chunks("learned", nothing, 0).numbers == []


def test_picking_in_turn_never_picks_twice_nor_what_is_absent():
    logits = torch.tensor([0.0, float("-inf"), 1.0, 2.0])
    assert pick_in_turn(logits, 9) == [3, 2, 0]


def test_a_sure_policy_stops_short_of_its_budget():
    logits = torch.tensor([5.0, 0.0, 4.0, 0.0, 0.0])  # 0.72 and 0.26 of the probability on chunks 0 and 2
    assert pick_in_turn(logits, 4, confidence=0.7) == [0]
    assert pick_in_turn(logits, 4, confidence=0.95) == [0, 2]
    assert pick_in_turn(logits, 1, confidence=0.95) == [0]
    assert len(pick_in_turn(logits, 4, confidence=1.0)) == 4


def test_a_question_aware_policy_reads_the_question(network):
    other = score_chunks(network, PASSAGES, VECTORS, torch.randn(2, 8))
    assert not torch.allclose(other, score_chunks(network, PASSAGES, VECTORS, QUESTION))


def test_an_untrained_policy_prefers_chunks_that_are_like_the_question():
    torch.manual_seed(0)
    fresh = ExpansionPolicy(64, width=32).eval()
    vectors, ranks = torch.randn(12, 64), []
    for number in range(12):
        logits = score_chunks(fresh, PASSAGES, vectors, vectors[[number]] + 0.3 * torch.randn(1, 64))
        ranks.append(int((logits > logits[number]).sum()))
    assert sum(ranks) / len(ranks) < 1


def test_an_untrained_policy_is_neighbourhood():
    torch.manual_seed(0)
    fresh, vectors, question = ExpansionPolicy(64, width=32).eval(), torch.randn(12, 64), torch.randn(2, 64)
    logits = score_chunks(fresh, PASSAGES, vectors, question)
    candidates = Candidates(PASSAGES, vectors, question)
    assert sorted(rank(logits)[:5]) == sorted(select_chunks("neighbourhood", candidates, 5).numbers)


def test_a_policy_file_without_a_weight_is_refused_with_what_to_do(network, tmp_path):
    path = tmp_path / "policy.safetensors"
    save_file({name: weight for name, weight in network.state_dict().items() if name != "neighbourhood_weight"}, path)
    with pytest.raises(CheckpointError, match='"neighbourhood_weight"; train or export the checkpoint again'):
        load_policy_file(path, 4, question_aware=True)


def test_a_question_blind_policy_does_not():
    blind = ExpansionPolicy(8, width=16, question_aware=False).eval()
    assert torch.equal(
        score_chunks(blind, PASSAGES, VECTORS, torch.randn(2, 8)), score_chunks(blind, PASSAGES, VECTORS, QUESTION)
    )


def test_padding_changes_no_logit(network):
    passages = torch.tensor([[*PASSAGES, -1, -1]])
    padded = torch.cat([VECTORS, torch.randn(2, 8)])
    question = torch.cat([QUESTION, torch.randn(1, 8)])
    logits = network(padded[None], passages, question[None], torch.tensor([[True, True, False]]))[0]
    assert torch.allclose(logits[:12], score_chunks(network, PASSAGES, VECTORS, QUESTION), atol=1e-5)
    assert torch.isinf(logits[12:]).all()


def test_neighbours_stop_at_the_border_of_a_passage():
    vectors = torch.arange(1.0, 5.0).reshape(1, 4, 1)
    triples = with_neighbours(vectors, torch.tensor([[0, 0, 1, 1]]))
    assert triples[0].tolist() == [[0, 1, 2], [1, 2, 0], [0, 3, 4], [3, 4, 0]]


@given(
    lengths=st.lists(st.integers(1, 16), max_size=40).map(np.array),
    num_other_slots=st.integers(1, 30),
    max_prompt_slots=st.integers(1, 400),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_slots_hold_whichever_chunks_are_selected_and_are_used(
    lengths, num_other_slots, max_prompt_slots, fraction, seed
):
    num_compressed = num_other_slots + len(lengths)
    options = ExpansionOptions(fraction, "random", seed, max_prompt_slots)
    if num_compressed > max_prompt_slots:
        with pytest.raises(InvalidRequest, match=f"prompt takes {num_compressed} with no chunk expanded; allow more"):
            budget_of(options, lengths, num_other_slots, window=400)
        return
    budget = budget_of(options, lengths, num_other_slots, window=400)
    longest = sorted((int(length) - 1 for length in lengths), reverse=True)
    assert num_compressed + sum(longest[:budget]) <= max_prompt_slots
    one_more_fits = budget < len(lengths) and num_compressed + sum(longest[: budget + 1]) <= max_prompt_slots
    assert not one_more_fits or budget == expansion_budget(fraction, len(lengths))


def test_every_chunk_is_refused_where_the_slots_do_not_hold_them():
    options = ExpansionOptions(policy="all", max_prompt_slots=48)
    with pytest.raises(InvalidRequest, match="the prompt takes 49 with every chunk expanded, as policy all asks"):
        budget_of(options, LENGTHS, num_other_slots=9, window=4096)
    assert budget_of(options, LENGTHS, num_other_slots=8, window=4096) == 12


def test_none_expands_nothing_however_many_slots_there_are():
    assert budget_of(ExpansionOptions(1.0, "none", max_prompt_slots=4000), LENGTHS, 9, window=4096) == 0


def test_more_slots_than_the_window_are_refused():
    with pytest.raises(InvalidRequest, match="max_prompt_slots is 4097; allowed is 1 to 4096, the decoder's window"):
        budget_of(ExpansionOptions(max_prompt_slots=4097), LENGTHS, 9, window=4096)
