import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refrag.errors import InvalidRequest
from refrag.model.policy import ExpansionPolicy, pick_in_turn, with_neighbours
from refrag.policies.budget import expands_all, expansion_budget
from refrag.policies.selection import score_chunks, select_chunks
from refrag.request import ContextRequest, ExpansionOptions, SamplingParams

PASSAGES = [number // 3 for number in range(12)]
VECTORS, QUESTION = torch.randn(12, 8), torch.randn(2, 8)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return ExpansionPolicy(8, width=16).eval()


def select(network, **options):
    return select_chunks(ExpansionOptions(**options), PASSAGES, network, VECTORS, QUESTION)


@given(st.floats(0, 1), st.integers(0, 5000))
def test_the_budget_is_never_exceeded(fraction, num_chunks):
    assert expansion_budget(fraction, num_chunks) <= fraction * num_chunks + 0.01


@pytest.mark.parametrize(
    "fraction, num_chunks, budget", [(0.1, 10, 1), (0.1, 9, 0), (0.7, 10, 7), (0, 99, 0), (1, 7, 7)]
)
def test_the_budget_rounds_down(fraction, num_chunks, budget):
    assert expansion_budget(fraction, num_chunks) == budget


@pytest.mark.parametrize("policy", ["learned", "random"])
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


def test_learned_picks_are_the_highest_logits(network):
    logits = score_chunks(PASSAGES, network, VECTORS, QUESTION)
    assert select(network, expand_fraction=0.25) == sorted(logits.topk(3).indices.tolist())


def test_no_chunks_need_no_selection(network):
    assert select_chunks(ExpansionOptions(), [], network, VECTORS[:0], QUESTION) == []


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
    other = score_chunks(PASSAGES, network, VECTORS, torch.randn(2, 8))
    assert not torch.allclose(other, score_chunks(PASSAGES, network, VECTORS, QUESTION))


def test_a_question_blind_policy_does_not():
    blind = ExpansionPolicy(8, width=16, question_aware=False).eval()
    assert torch.equal(
        score_chunks(PASSAGES, blind, VECTORS, torch.randn(2, 8)), score_chunks(PASSAGES, blind, VECTORS, QUESTION)
    )


def test_padding_changes_no_logit(network):
    passages = torch.tensor([[*PASSAGES, -1, -1]])
    padded = torch.cat([VECTORS, torch.randn(2, 8)])
    question = torch.cat([QUESTION, torch.randn(1, 8)])
    logits = network(padded[None], passages, question[None], torch.tensor([[True, True, False]]))[0]
    assert torch.allclose(logits[:12], score_chunks(PASSAGES, network, VECTORS, QUESTION), atol=1e-5)
    assert torch.isinf(logits[12:]).all()


def test_neighbours_stop_at_the_border_of_a_passage():
    vectors = torch.arange(1.0, 5.0).reshape(1, 4, 1)
    triples = with_neighbours(vectors, torch.tensor([[0, 0, 1, 1]]))
    assert triples[0].tolist() == [[0, 1, 2], [1, 2, 0], [0, 3, 4], [3, 4, 0]]


@pytest.mark.parametrize(
    "options, named",
    [
        ({"expand_fraction": -0.1}, "expand_fraction is -0.1"),
        ({"expand_fraction": 1.5}, "expand_fraction is 1.5"),
        ({"expand_fraction": float("nan")}, "expand_fraction is nan"),
        ({"policy": "best"}, "learned, random, none, all"),
        ({"policy": "attention"}, "not served yet"),
    ],
)
def test_a_bad_request_says_what_was_given(options, named):
    with pytest.raises(InvalidRequest, match=named):
        ExpansionOptions(**options)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": 1e-42}, r"temperature is 1e-42; it must be 0 \(greedy\) or at least 0.01"),
        ({"stop_words": ("a",) * 17}, "17 words"),
        ({"stop_words": ("a" * 257,)}, "257 characters"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"stop_words": ("",)}, "empty word"),
    ],
)
def test_bad_sampling_says_what_was_given(options, named):
    with pytest.raises(InvalidRequest, match=named):
        SamplingParams(**options)


@pytest.mark.parametrize("question", ["", " \n"])
def test_an_empty_question_is_refused(question):
    with pytest.raises(InvalidRequest, match="text_input is empty"):
        ContextRequest(question)


@given(
    policy=st.sampled_from(["learned", "random", "all", "none"]),
    fraction=st.floats(0, 1),
    num_chunks=st.integers(0, 40),
)
def test_a_plain_prompt_is_known_beforehand(policy, fraction, num_chunks):
    options = ExpansionOptions(expand_fraction=fraction, policy=policy)
    passages = [0] * num_chunks
    network = ExpansionPolicy(encoder_width=8, width=8, num_heads=2).eval()
    vectors = torch.zeros(num_chunks, 8)
    selected = select_chunks(options, passages, network, vectors, torch.zeros(1, 8))
    assert expands_all(options, num_chunks) == (len(selected) == num_chunks)
