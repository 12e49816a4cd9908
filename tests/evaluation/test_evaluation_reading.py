"""A teacher-forced pass equals generating token by token, and a batch equals each prompt alone."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import as_chat

from refrag.engine.generation import generate
from refrag.evaluation.case_set import CaseSet
from refrag.evaluation.cases import Case
from refrag.evaluation.conditions import Condition, compressed
from refrag.evaluation.perplexity import target_losses
from refrag.evaluation.prompts import build_prompts
from refrag.evaluation.reading import batch_by_length, generate_texts, read
from refrag.request import SamplingParams
from refrag.store.values import round_to_stored
from refrag.teacher_forcing.predict import encode, predict
from refrag.training.stages.continuation import continuation_batch
from refrag.training.stages.reconstruct import reconstruction_batch

CONDITIONS = [Condition("none"), Condition("full"), compressed(8), compressed(16, "learned", 0.2)]


def generate_alone(models, prompt, max_tokens):
    """Token ids from the engine, one prompt and one token at a time."""
    decoder, tokenizer = models.checkpoint.decoder, models.checkpoint.decoder_tokenizer
    deltas = list(generate(decoder, tokenizer, prompt, SamplingParams(max_tokens)))
    return [token_id for delta in deltas for token_id in delta.token_ids], deltas[-1].finish_reason


@pytest.mark.parametrize("condition", CONDITIONS)
def test_an_answer_is_right_if_greedy_decoding_gives_it(cases, models, condition):
    for prompt in build_prompts(cases, condition):
        token_ids, _ = generate_alone(models, prompt.prompt, max_tokens=6)
        wrong = [*token_ids[:-1], token_ids[-1] + 1]
        for target, expected in ((token_ids, True), (wrong, False)):
            assert read(models.checkpoint.decoder, [replace(prompt, target_ids=target)])[0].is_right == expected


@pytest.mark.parametrize("condition", CONDITIONS)
def test_prompts_read_in_batches_are_those_read_alone(cases, models, condition):
    prompts = build_prompts(cases, condition)
    together = read(models.checkpoint.decoder, prompts)
    for prompt, reading in zip(prompts, together, strict=True):
        alone = read(models.checkpoint.decoder, [prompt])[0]
        np.testing.assert_allclose(reading.losses, alone.losses, atol=1e-4)
        assert reading.is_right == alone.is_right


@pytest.mark.parametrize("condition", CONDITIONS)
def test_answers_generated_in_batches_are_those_generated_alone(cases, models, condition):
    decoder, tokenizer = models.checkpoint.decoder, models.checkpoint.decoder_tokenizer
    prompts = [one.prompt for one in build_prompts(cases, condition)]
    texts = generate_texts(decoder, tokenizer, prompts, max_tokens=6)
    for prompt, text in zip(prompts, texts, strict=True):
        token_ids, _ = generate_alone(models, prompt, max_tokens=6)
        assert text == tokenizer.decode(token_ids, skip_special_tokens=True).strip()


def test_a_batch_holds_prompts_of_alike_length_up_to_its_slots():
    assert batch_by_length([3, 10, 4, 9], max_slots=20) == [[1, 3], [2, 0]]
    assert batch_by_length([50], max_slots=20) == [[0]]
    assert batch_by_length([3, 10, 4, 9], max_slots=100, max_pairs=200) == [[1, 3], [2, 0]]
    assert batch_by_length([50], max_pairs=20) == [[0]]


def windows(models, count=3, length=40):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(5, models.checkpoint.decoder.vocab_size, (count, length), generator=generator).tolist()


def as_served(vectors):
    return torch.from_numpy(round_to_stored(vectors.numpy())).float()


def test_a_continuation_costs_what_training_says(models):
    drawn, expanded = windows(models), [[], [], []]
    batch = continuation_batch(models.checkpoint, drawn, 8, 4, expanded)
    with torch.inference_mode():
        vectors = as_served(encode(models.checkpoint.encoder, batch.chunks))
        prediction = predict(models.checkpoint.decoder, batch, models.checkpoint.projector(vectors))
        expected = prediction.mean_loss_per_example(3)
    cases = CaseSet(models, [Case([window[:32]], window[32:]) for window in drawn], seed=0)
    np.testing.assert_allclose(target_losses(cases, compressed(8)).mean(1), expected, atol=1e-4)


def test_a_reconstruction_costs_what_training_says(models):
    drawn = windows(models)
    batch = reconstruction_batch(models.checkpoint, drawn, 8)
    with torch.inference_mode():
        vectors = as_served(encode(models.checkpoint.encoder, batch.chunks))
        prediction = predict(models.checkpoint.decoder, batch, models.checkpoint.projector(vectors))
        expected = prediction.mean_loss_per_example(3)
    cases = CaseSet(models, [Case([window], window) for window in drawn], seed=0)
    np.testing.assert_allclose(target_losses(cases, compressed(8)).mean(1), expected, atol=1e-4)


def test_prose_stands_in_no_chat(models):
    drawn = [Case([window[:32]], window[32:]) for window in windows(models)]
    chat = replace(models, checkpoint=as_chat(models.checkpoint))
    in_chat, plain = (CaseSet(one, drawn, seed=0) for one in (chat, models))
    for condition in (Condition("none"), Condition("full"), compressed(8), compressed(8, "perplexity", 0.5)):
        np.testing.assert_array_equal(target_losses(in_chat, condition), target_losses(plain, condition))


def test_questions_stand_in_the_chat(models, cases):
    chat = as_chat(models.checkpoint)
    head_ids = chat.chunker.frame.head_ids
    asked = CaseSet(replace(models, checkpoint=chat), cases.cases, seed=0)
    for condition in (Condition("full"), compressed(8)):
        [first, *_] = build_prompts(asked, condition)
        assert len(head_ids) > 1 and first.prompt.input_ids[: len(head_ids)].tolist() == head_ids


def test_without_bos_the_first_token_has_no_loss(models):
    tokenizer = copy.deepcopy(models.checkpoint.decoder_tokenizer)
    tokenizer.bos_token = None
    without = replace(models, checkpoint=replace(models.checkpoint, decoder_tokenizer=tokenizer))
    cases = CaseSet(without, [Case([window[:32]], window[32:]) for window in windows(models)], seed=0)
    losses = target_losses(cases, Condition("none"))
    assert np.isnan(losses[:, 0]).all() and np.isfinite(losses[:, 1:]).all()
    assert all(len(losses) == 32 for losses in cases.token_losses())
