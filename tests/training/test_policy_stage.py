"""GRPO held by equality with its definition, pick by pick and selection by selection."""

import itertools
import math
import random
from collections import Counter
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refrag.context.chunking import Chunk, PackedChunks
from refrag.data.contexts import TokenisedContext, TokenisedQuestion
from refrag.model.policy import ExpansionPolicy, log_probabilities_in_turn, sample_in_turn
from refrag.prompt import lay_out_prompt
from refrag.teacher_forcing.batches import collate_contexts, first_rows
from refrag.training.loop import run_stage
from refrag.training.settings import Optimisation, Policy
from refrag.training.stages.policy import PolicyOptimisation, PolicySource, clipped_loss, group_advantages

pytestmark = pytest.mark.usefixtures("accelerator_of_test")

LOGITS = [0.5, -1.0, 2.0, 0.0]
CLIP = 0.2


@pytest.fixture
def checkpoint(tiny_checkpoint):
    return replace(tiny_checkpoint, policy=deepcopy(tiny_checkpoint.policy))


def settings(num_steps=2, learning_rate=1e-3, **changes):
    optimisation = Optimisation(num_steps=num_steps, learning_rate=learning_rate, snapshot_seconds=1e9)
    return Policy(
        stage="policy",
        optimisation=optimisation,
        **{"tokens_per_step": 300, "group_size": 3, "max_passages": 2, "expand_fractions": [0.1, 0.3], **changes},
    )


def some_batch(checkpoint, seed=0, **changes):
    return PolicySource(checkpoint, settings(**changes)).draw(random.Random(seed), 0.0)


def softmax(scores):
    exponentials = [math.exp(score) for score in scores]
    return [each / sum(exponentials) for each in exponentials]


def probability(logits, picks):
    """Return the probability of drawing `picks` in turn, each from the softmax over the chunks that are left."""
    total, left = 1.0, dict(enumerate(logits))
    for pick in picks:
        total *= softmax([left[pick], *(score for number, score in left.items() if number != pick)])[0]
        del left[pick]
    return total


# Sampling


@given(data=st.data(), num_chunks=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_samples_have_no_chunk_twice_and_keep_to_the_budget_of_their_row(data, num_chunks, seed):
    budgets = [data.draw(st.integers(1, count)) for count in num_chunks]
    logits = torch.randn(len(num_chunks), max(num_chunks))
    for row, count in enumerate(num_chunks):
        logits[row, count:] = float("-inf")
    samples = sample_in_turn(logits, torch.tensor(budgets), 5, torch.Generator().manual_seed(seed))
    assert samples.shape == (len(num_chunks), 5, max(budgets))
    for row, count, budget in zip(samples.tolist(), num_chunks, budgets, strict=True):
        for picks in row:
            assert len(set(picks[:budget])) == budget
            assert set(picks[:budget]) <= set(range(count))
            assert set(picks[budget:]) <= {-1}


def test_samples_are_distributed_as_draws_from_one_masked_softmax_after_another():
    count = 20_000
    samples = sample_in_turn(torch.tensor([LOGITS]), torch.tensor([2]), count, torch.Generator().manual_seed(0))
    seen = Counter(map(tuple, samples[0].tolist()))
    expected = {picks: count * probability(LOGITS, picks) for picks in itertools.permutations(range(4), 2)}
    assert seen.keys() == expected.keys()
    chi_square = sum((seen[picks] - number) ** 2 / number for picks, number in expected.items())
    # Eleven degrees of freedom: one sample in a thousand is beyond this.
    assert chi_square < 31.3


def test_the_same_seed_draws_the_same_samples():
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return sample_in_turn(torch.tensor([LOGITS]), torch.tensor([3]), 6, generator).tolist()

    assert draw(1) == draw(1) != draw(2)


# Log-probabilities


def test_a_log_probability_is_that_of_each_pick_among_what_is_left():
    picks = [[2, 0, 1], [3, 1, -1], [0, -1, -1]]
    ours = log_probabilities_in_turn(torch.tensor([LOGITS]), torch.tensor([picks]))[0]
    for row, selection in zip(ours.tolist(), picks, strict=True):
        left = dict(enumerate(LOGITS))
        for value, pick in zip(row, selection, strict=True):
            expected = math.log(softmax(left.values())[list(left).index(pick)]) if pick >= 0 else 0.0
            assert value == pytest.approx(expected, abs=1e-5)
            left.pop(pick, None)


@pytest.mark.parametrize("num_picks", [1, 2, 3, 4])
def test_the_probabilities_of_all_selections_in_all_orders_sum_to_one(num_picks):
    logits = torch.tensor([[*LOGITS, float("-inf")]])
    picks = torch.tensor([list(itertools.permutations(range(4), num_picks))])
    assert log_probabilities_in_turn(logits, picks).sum(-1).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_picking_every_chunk_leaves_gradients_finite():
    logits = torch.tensor([[*LOGITS, float("-inf")]], requires_grad=True)
    log_probabilities_in_turn(logits, torch.tensor([[[0, 1, 2, 3]]])).sum().backward()
    assert logits.grad.isfinite().all()


# Advantages and loss


def test_advantages_are_rewards_in_deviations_from_their_groups_mean():
    rewards = torch.tensor([[-1.0, -2.0, -4.0], [0.1, 0.3, 0.2]])
    advantages = group_advantages(rewards)
    torch.testing.assert_close(advantages.mean(1), torch.zeros(2))
    torch.testing.assert_close(advantages.std(1), torch.ones(2), atol=2e-3, rtol=0)
    assert advantages.argsort(1).tolist() == rewards.argsort(1).tolist()


def test_a_group_of_equal_rewards_has_no_advantages():
    assert group_advantages(torch.full((2, 4), -1.5)).tolist() == [[0.0] * 4] * 2


def ppo_loss(log_ratios, advantages, picks):
    """Return the clipped surrogate over every pick, in plain Python."""
    gains = []
    for ratios_of_row, advantages_of_row, picks_of_row in zip(log_ratios, advantages, picks, strict=True):
        for ratios, advantage, selection in zip(ratios_of_row, advantages_of_row, picks_of_row, strict=True):
            for log_ratio, pick in zip(ratios, selection, strict=True):
                if pick >= 0:
                    ratio = math.exp(log_ratio)
                    clipped = min(max(ratio, 1 - CLIP), 1 + CLIP)
                    gains.append(min(ratio * advantage, clipped * advantage))
    return -sum(gains) / len(gains)


@given(seed=st.integers(0, 999))
def test_the_loss_is_ppos_in_plain_python(seed):
    generator = torch.Generator().manual_seed(seed)
    log_ratios = 0.4 * torch.randn(2, 3, 4, generator=generator)
    advantages = torch.randn(2, 3, generator=generator)
    picks = torch.randint(-1, 5, (2, 3, 4), generator=generator)
    picks[0, 0, 0] = 0
    loss, _ = clipped_loss(log_ratios, advantages, picks >= 0, CLIP)
    assert loss.item() == pytest.approx(ppo_loss(log_ratios.tolist(), advantages.tolist(), picks.tolist()), abs=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [(1.3, 1.0, False), (1.3, -1.0, True), (0.7, 1.0, True), (0.7, -1.0, False), (1.1, 1.0, True), (0.9, -1.0, True)],
)
def test_only_a_pick_that_has_not_yet_gone_its_way_far_enough_has_a_gradient(ratio, advantage, moves):
    log_ratio = torch.tensor([[[math.log(ratio)]]], requires_grad=True)
    loss, clipped = clipped_loss(log_ratio, torch.tensor([[advantage]]), torch.tensor([[[True]]]), CLIP)
    loss.backward()
    assert (log_ratio.grad.item() != 0) == moves
    assert clipped == float(abs(ratio - 1) > CLIP)


# Rollouts


@torch.no_grad()
def reward_alone(checkpoint, context, picks):
    """Minus the mean loss of the answer, from one prompt laid out and read by itself."""
    decoder, (question,), chunks = checkpoint.decoder, context.questions, context.chunks
    prompt = lay_out_prompt(chunks, picks, question.prompt_ids, decoder.vocab_size, checkpoint.chunker.frame.head_ids)
    ids, mask = checkpoint.chunker.encoder_inputs(chunks[prompt.compressed])
    rows = checkpoint.projector(checkpoint.encoder(torch.from_numpy(ids), torch.from_numpy(mask)))
    ids = torch.tensor([*prompt.input_ids.tolist(), *question.answer_ids])
    logits = decoder.backbone(inputs_embeds=decoder.embed_prompt(ids, rows).unsqueeze(0)).logits[0]
    places = torch.arange(prompt.num_slots - 1, len(ids) - 1)
    return logits.log_softmax(-1)[places, torch.tensor(question.answer_ids)].mean().item()


@torch.no_grad()
def test_a_reward_is_minus_the_log_perplexity_of_the_answer_after_one_prompt_alone(checkpoint):
    batch = some_batch(checkpoint)
    objective = PolicyOptimisation(checkpoint, settings())
    rollouts = objective.roll_out(batch, seed=7)
    rewards, _ = objective.rewards(batch, rollouts.chunk_vectors, rollouts.picks)
    expected = [
        [reward_alone(checkpoint, context, set(picks) - {-1}) for picks in group]
        for context, group in zip(batch.contexts, rollouts.picks.tolist(), strict=True)
    ]
    torch.testing.assert_close(rewards, torch.tensor(expected), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rollouts.advantages, group_advantages(rewards))


@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_rollouts_spend_the_budget_of_serving_but_one_pick_at_least(checkpoint, fraction):
    batch = some_batch(checkpoint)
    objective = PolicyOptimisation(checkpoint, settings(expand_fractions=[fraction]))
    numbers = (objective.roll_out(batch, seed=7).picks >= 0).sum(-1)
    for row, context in zip(numbers, batch.contexts, strict=True):
        assert set(row.tolist()) == {max(1, int(fraction * len(context.chunks)))}


def test_the_first_update_has_ratios_of_one_and_a_gradient_for_the_policy_alone(checkpoint):
    objective = PolicyOptimisation(checkpoint, settings()).train()
    with torch.no_grad():
        rollouts = objective(some_batch(checkpoint), rollout_seed=7)
    loss, figures = objective(rollouts)
    loss.backward()
    # With ratios of one the loss is minus the mean advantage, weighted by the number of picks.
    numbers = (rollouts.picks >= 0).sum(-1)
    expected = -(rollouts.advantages * numbers).sum() / numbers.sum()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)
    assert figures["clipped"] == 0
    assert any(each.grad is not None and each.grad.any() for each in objective.policy.parameters())
    assert not any(
        each.requires_grad
        for part in ("encoder", "projector", "decoder")
        for each in getattr(objective, part).parameters()
    )


@pytest.mark.parametrize("question_aware", [True, False])
def test_every_parameter_that_trains_has_a_gradient(checkpoint, question_aware):
    """Processes that share weights wait for each of them."""
    policy = ExpansionPolicy(checkpoint.encoder.width, 16, 2, question_aware)
    objective = PolicyOptimisation(replace(checkpoint, policy=policy), settings())
    with torch.no_grad():
        rollouts = objective(some_batch(checkpoint), rollout_seed=7)
    objective(rollouts).loss.backward()
    trained = [name for name, each in policy.named_parameters() if each.requires_grad]
    assert [name for name, each in policy.named_parameters() if each.grad is not None] == trained
    assert ("query.weight" in trained) == question_aware


class Counting(PolicyOptimisation):
    """Keeps the rollouts that it made and the ones it improved on."""

    def __init__(self, *given):
        super().__init__(*given)
        self.made, self.improved_on = [], []

    def roll_out(self, batch, seed):
        self.made.append(super().roll_out(batch, seed))
        return self.made[-1]

    def improve(self, rollouts):
        self.improved_on.append(rollouts)
        return super().improve(rollouts)


def test_each_rollout_serves_several_updates(checkpoint, tmp_path):
    run = settings(num_steps=2, updates_per_batch=3)
    objective = Counting(checkpoint, run)
    run_stage("policy", objective, PolicySource(checkpoint, run), run.optimisation, tmp_path)
    first, second = objective.made
    assert [id(each) for each in objective.improved_on] == [id(first)] * 3 + [id(second)] * 3


# Learning

GOOD, BAD = (7, 8, 9), (20, 21, 22)


class TwoArmed(PolicyOptimisation):
    """Rewards the first pick where it is the good one of two chunks."""

    def rewards(self, batch, vectors, picks):
        rewards = [
            [float(context.chunks[first].token_ids == GOOD) for (first,) in group]
            for context, group in zip(batch.contexts, picks.tolist(), strict=True)
        ]
        return torch.tensor(rewards), 0.0


class TwoArmedSource:
    def __init__(self, checkpoint):
        self.chunker = checkpoint.chunker

    def draw(self, rng, progress):
        return collate_contexts(self.chunker, [self.context(rng) for _ in range(8)], seed=rng.getrandbits(32))

    def context(self, rng):
        question = TokenisedQuestion("fact", "", "", [5], [6], PackedChunks.cut([[5, 6]], 2), [])
        chunks = PackedChunks.of(Chunk(ids, 0) for ids in rng.sample([GOOD, BAD], 2))
        return TokenisedContext([""], chunks, [question])

    def state(self):
        return {}


@pytest.mark.parametrize("question_aware", [True, False])
def test_the_policy_learns_to_pick_the_chunk_that_pays(checkpoint, question_aware, tmp_path):
    torch.manual_seed(0)
    policy = ExpansionPolicy(checkpoint.encoder.width, 16, 2, question_aware)
    run = settings(num_steps=40, learning_rate=1e-2, group_size=4)
    objective = TwoArmed(replace(checkpoint, policy=policy), run)
    source = TwoArmedSource(checkpoint)
    run_stage("policy", objective, source, run.optimisation, tmp_path)
    objective.eval()
    rollouts = objective.roll_out(source.draw(random.Random("new"), 0.0), seed=1)
    assert rollouts.mean_reward > 0.9


def test_the_rows_of_a_batch_follow_its_contexts(checkpoint):
    batch = some_batch(checkpoint)
    assert batch.policy.chunk_rows[:, 0].tolist() == first_rows(context.chunks for context in batch.contexts)
