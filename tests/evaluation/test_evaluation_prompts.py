import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from refrag.context.chunking import PackedChunks
from refrag.errors import CheckpointError, InvalidRequest
from refrag.evaluation.case_set import CaseSet
from refrag.evaluation.conditions import POLICIES, Condition, compressed
from refrag.evaluation.prompts import (
    build_prompts,
    choose_chunks,
    rank_by_surprise,
    request_seed,
    truncated_length,
)
from refrag.evaluation.reading import read
from refrag.pipeline import Pipeline
from refrag.policies.budget import expansion_budget
from refrag.request import ExpansionOptions, Request


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_spends_its_whole_budget(cases, policy):
    for case, chosen in zip(cases.cases, choose_chunks(cases, compressed(8, policy, 0.2)), strict=True):
        assert len(set(chosen)) == len(chosen) == expansion_budget(0.2, case.num_chunks(8)) > 0
        assert max(chosen) < case.num_chunks(8)


def test_the_oracle_expands_nothing_but_evidence(cases):
    for case, chosen in zip(cases.cases, choose_chunks(cases, compressed(8, "oracle", 1.0)), strict=True):
        assert chosen == case.evidence_chunks(8)


def as_request(case, checkpoint, options):
    """Return the request whose passages and question are the case's tokens."""
    tokenizer, template = checkpoint.decoder_tokenizer, checkpoint.config.template
    passages = [
        tokenizer.decode(ids)[len(template.passage_prefix) : -len(template.passage_suffix)] for ids in case.passages
    ]
    question = tokenizer.decode(case.prompt_ids).removeprefix(template.question_prefix)
    return Request(question.removesuffix(template.answer_prefix), passages, options)


SERVED = {"learned as served": "learned", "similarity": "similarity", "random": "random", "none": "none", "all": "all"}


@pytest.mark.parametrize("selection", SERVED)
def test_vectors_picks_and_prompts_are_those_of_the_pipeline(cases, models, selection):
    checkpoint, condition = models.checkpoint.with_chunk_size(8), compressed(8, selection, 0.3)
    pipeline, chosen, built = Pipeline(checkpoint), choose_chunks(cases, condition), build_prompts(cases, condition)
    for number, case in enumerate(cases.cases):
        options = ExpansionOptions(0.3, SERVED[selection], request_seed(cases, number))
        context = pipeline.prepare(as_request(case, checkpoint, options), max_tokens=32)
        if case.task == "followup":  # its turns are passages here, so that a request does not tell the newest
            context = replace(context, question_chunks=PackedChunks.cut([case.question_ids], 8))
        vectors, question_vectors = pipeline.encode(context)
        expanded = pipeline.select(options, context, vectors, question_vectors).numbers
        _, prompt = pipeline.build_prompt(context, expanded, vectors)
        assert torch.equal(cases.encoded(8)[number].vectors, vectors)
        assert torch.equal(cases.encoded(8)[number].question_vectors, question_vectors)
        assert chosen[number] == expanded and built[number].num_expanded == len(expanded)
        assert torch.equal(built[number].prompt.input_ids, prompt.input_ids)
        assert torch.equal(built[number].prompt.chunk_embeddings, prompt.chunk_embeddings)


def test_a_selection_that_nobody_has_is_refused_with_the_policies(cases):
    with pytest.raises(
        InvalidRequest,
        match="policy is 'best'; allowed: learned, similarity, neighbourhood, attention, random, none, all",
    ):
        choose_chunks(cases, compressed(8, "best", 0.2))


def test_vectors_are_those_that_a_store_gives_back(cases):
    for encoded in cases.encoded(8):
        for vectors in (encoded.vectors, encoded.question_vectors):
            assert torch.equal(vectors, vectors.half().float())


def test_the_random_policy_draws_anew_for_each_case_and_the_same_the_next_time(cases):
    """One seed for all cases would expand the same places in all contexts of one length."""
    assert len({request_seed(cases, number) for number in range(len(cases.cases))}) == len(cases.cases)
    again = CaseSet(cases.models, cases.cases, cases.seed)
    assert choose_chunks(again, compressed(8, "random", 0.2)) == choose_chunks(cases, compressed(8, "random", 0.2))


def test_perplexity_expands_what_surprises_most_and_reversed_what_surprises_least(cases):
    most, least = (choose_chunks(cases, compressed(8, name, 0.2)) for name in ("perplexity", "perplexity reversed"))
    losses, chunks = cases.token_losses()[0], cases.cases[0].chunks(8)
    starts = np.cumsum([0, *map(len, chunks)])
    means = [losses[start:stop].mean() for start, stop in itertools.pairwise(starts)]
    assert rank_by_surprise(cases, 0, 8) == np.argsort(means).tolist()
    assert means[most[0][0]] == max(means) and means[least[0][0]] == min(means)


@pytest.mark.parametrize(
    "selection, told",
    [
        ("blind", "'blind' needs a policy that does not see the question: --blind-policy"),
        ("learned unlabelled", "'learned unlabelled' needs a policy that sees the question: --unlabelled-policy"),
    ],
)
def test_a_selection_without_its_policy_is_refused(cases, models, selection, told):
    without = CaseSet(replace(models, policies={}), cases.cases, seed=0)
    with pytest.raises(CheckpointError, match=told):
        choose_chunks(without, compressed(8, selection, 0.2))


def test_everything_expanded_is_the_full_context(cases, models):
    full, expanded = (build_prompts(cases, one) for one in (Condition("full"), compressed(8, "random", 1.0)))
    readings = [read(models.plain, prompts) for prompts in (full, expanded)]
    for one, other in zip(*readings, strict=True):
        np.testing.assert_allclose(one.losses, other.losses, atol=1e-4)


def test_the_truncated_context_is_its_end_in_the_slots_of_the_compressed_one(cases):
    truncated, mixed = (
        build_prompts(cases, one)
        for one in (Condition("truncated", 8, expand_fraction=0.2), compressed(8, "random", 0.2))
    )
    for case, short, other in zip(cases.cases, truncated, mixed, strict=True):
        tokens = short.prompt.input_ids[1 : len(short.prompt.input_ids) - len(case.prompt_ids)].tolist()
        assert tokens == case.token_ids[-len(tokens) :]
        # A passage's last chunk may be shorter than the others.
        assert 0 <= short.num_slots - other.num_slots <= 7 * expansion_budget(0.2, case.num_chunks(8))
        assert len(tokens) == truncated_length(case, Condition("truncated", 8, expand_fraction=0.2))


def test_the_controls_keep_the_layout_and_lose_the_content(cases):
    true, shuffled, zeroed = (
        build_prompts(cases, compressed(8, "learned", 0.2, control)) for control in ("true", "shuffled", "zeroed")
    )
    for one, other, none in zip(true, shuffled, zeroed, strict=True):
        for control in (other, none):
            assert torch.equal(one.prompt.input_ids, control.prompt.input_ids)
            assert one.target_ids == control.target_ids
        rows, shuffled_rows, zeroed_rows = (each.prompt.chunk_embeddings for each in (one, other, none))
        assert rows.shape == shuffled_rows.shape == zeroed_rows.shape
        assert not torch.equal(rows, shuffled_rows)
        assert not zeroed_rows.any()
