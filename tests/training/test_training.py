import json
import random
from dataclasses import replace

import pytest
import torch

from refrag.training.batches import LossWeights, MixedExample, collate_mixed, collate_policy, first_rows
from refrag.training.data import draw_context
from refrag.training.demo import DemoSettings, make_checkpoint, prepare_encoder, train_demo
from refrag.training.loop import run_stage
from refrag.training.optimizer import learning_rate_factor
from refrag.training.stages import (
    JointStage,
    PlainStage,
    ReconstructStage,
    all_questions_at_once,
    each_question_as_served,
)

TINY = DemoSettings(vocab_size=400, width=32, num_decoder_layers=1, num_encoder_layers=1, num_heads=2, policy_width=32)


@pytest.fixture
def contexts(tiny_checkpoint):
    rng = random.Random(0)
    return [draw_context(rng, tiny_checkpoint.chunker, count, 3, "train") for count in (2, 3)]


def examples(contexts, expanded):
    return [
        MixedExample(context.chunks, numbers, context.questions, first_row)
        for context, numbers, first_row in zip(contexts, expanded, first_rows(contexts), strict=True)
    ]


def test_a_label_is_what_stands_in_the_next_slot(contexts, tiny_checkpoint):
    vocab_size = tiny_checkpoint.decoder.vocab_size
    batch = collate_mixed(examples(contexts, [{0}, {1, 2}]), vocab_size, 1, LossWeights())
    counted = batch.weights[:, :-1] > 0
    assert torch.equal(batch.labels[:, :-1][counted], batch.input_ids[:, 1:][counted])
    assert (batch.labels[batch.weights > 0] < vocab_size).all()


def test_the_weighted_answers_are_the_answers(contexts, tiny_checkpoint):
    batch = collate_mixed(examples(contexts, [set(), set()]), tiny_checkpoint.decoder.vocab_size, 1, LossWeights())
    for row, context in enumerate(contexts):
        expected = [token for question in context.questions for token in question.answer_ids]
        assert batch.labels[row][batch.is_answer[row]].tolist() == expected


def test_placeholders_number_the_chunks_of_the_whole_batch(contexts, tiny_checkpoint):
    vocab_size = tiny_checkpoint.decoder.vocab_size
    batch = collate_mixed(examples(contexts, [{0}, {1}]), vocab_size, 1, LossWeights())
    first, second = len(contexts[0].chunks), len(contexts[1].chunks)
    rows = (batch.input_ids[batch.input_ids >= vocab_size] - vocab_size).tolist()
    assert rows == [*range(1, first), first, *range(first + 2, first + second)]


def test_a_policy_row_points_at_the_chunks_of_its_context(contexts):
    batch = collate_policy(contexts)
    first = len(contexts[0].chunks)
    assert batch.chunk_rows[3, : len(contexts[1].chunks)].tolist() == list(
        range(first, first + len(contexts[1].chunks))
    )
    assert batch.answers[4].nonzero().flatten().tolist() == contexts[1].questions[1].answer_chunks


def test_each_question_as_served_has_a_sequence_with_its_own_picks(contexts):
    width = max(len(context.chunks) for context in contexts)
    logits = torch.randn(6, width) + 50 * collate_policy(contexts).answers
    served = each_question_as_served(random.Random(0), contexts, logits, confidence=0.95)
    questions = [question for context in contexts for question in context.questions]
    assert [example.questions for example in served] == [[question] for question in questions]
    assert all(
        set(question.answer_chunks) & example.expanded for question, example in zip(questions, served, strict=True)
    )
    assert [example.first_row for example in served] == [0] * 3 + [len(contexts[0].chunks)] * 3


def test_all_questions_at_once_share_one_sequence_and_its_random_chunks(contexts):
    for seed in range(20):
        for example, context in zip(all_questions_at_once(random.Random(seed), contexts), contexts, strict=True):
            assert example.questions == context.questions
            assert len(example.expanded) <= 0.3 * len(context.chunks)


def test_the_rate_warms_up_and_falls_to_its_floor():
    factors = [learning_rate_factor(progress / 100) for progress in range(100)]
    assert max(factors) == factors[4] == 1
    assert factors[0] < 0.1
    assert factors[4:] == sorted(factors[4:], reverse=True)


@pytest.mark.slow
def test_every_stage_learns(tmp_path):
    torch.manual_seed(0)
    settings = replace(TINY, width=64, num_decoder_layers=2, num_heads=4)
    checkpoint = make_checkpoint(settings)
    modules = checkpoint.modules

    def train(name, step, trained):
        run_stage(name, step, trained, 150, 6e-3, 0, tmp_path)
        logged = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        losses = [figures["loss"] for figures in logged if "loss" in figures]
        return sum(losses[-8:]) / sum(losses[:8])

    plain = PlainStage(checkpoint, tokens_per_step=1024)
    assert train("plain", plain.step, {"decoder": modules["decoder"]}) < 0.6
    prepare_encoder(checkpoint, settings)
    reconstruct = ReconstructStage(checkpoint, tokens_per_step=1024)
    encoder = {"encoder": modules["encoder"], "projector": modules["projector"]}
    # Progress 0 holds the curriculum at its first step, so that first and last losses are of the same task.
    assert train("reconstruct", lambda rng, _: reconstruct.step(rng, 0.0), encoder) < 0.95
    joint = JointStage(checkpoint, tokens_per_step=1024)
    assert train("joint", lambda rng, _: joint.step(rng, 0.0), modules) < 0.9


def test_reconstruction_leaves_the_decoder_as_it_was(tmp_path):
    checkpoint = make_checkpoint(TINY)
    before = {name: weight.clone() for name, weight in checkpoint.decoder.state_dict().items()}
    modules = {"encoder": checkpoint.encoder, "projector": checkpoint.projector}
    run_stage("r", ReconstructStage(checkpoint).step, modules, 2, 3e-3, 0, tmp_path)
    assert all(torch.equal(before[name], weight) for name, weight in checkpoint.decoder.state_dict().items())


def test_a_resumed_stage_ends_with_the_weights_of_an_unbroken_one(tmp_path):
    whole, broken = (
        _train_plain(tmp_path / "whole", interrupt_at=None),
        _train_plain(tmp_path / "broken", interrupt_at=2),
    )
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def _train_plain(directory, interrupt_at):
    """Weights after four steps; interrupted, the process ends after a snapshot and another takes over."""
    if interrupt_at:
        _run_plain(directory, interrupt_at)
    return _run_plain(directory, None)


def _run_plain(directory, interrupt_at):
    torch.manual_seed(0)
    checkpoint = make_checkpoint(TINY)
    stage = PlainStage(checkpoint)

    def step(rng, progress):
        if interrupt_at is not None and progress >= interrupt_at / 4:
            raise KeyboardInterrupt
        return stage.step(rng, progress)

    try:
        run_stage("plain", step, {"decoder": checkpoint.decoder}, 4, 3e-3, 0, directory, snapshot_seconds=0)
    except KeyboardInterrupt:
        assert interrupt_at is not None
    return checkpoint.decoder.state_dict()


def test_the_whole_recipe_yields_a_checkpoint_that_tells_its_cost(tmp_path):
    settings = replace(TINY, plain_steps=2, reconstruct_steps=2, joint_steps=2)
    checkpoint = train_demo(settings, tmp_path)
    stages = checkpoint.config.provenance["stages"]
    assert [stage["num_steps"] for stage in stages.values()] == [2, 2, 2]
