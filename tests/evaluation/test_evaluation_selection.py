import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from refrag.context.prepare import prepare_context
from refrag.errors import CheckpointError
from refrag.evaluation.conditions import POLICIES, Condition, compressed
from refrag.evaluation.encoding import CaseSet
from refrag.evaluation.prompts import build_prompts, truncated_length
from refrag.evaluation.reading import read
from refrag.evaluation.selection import choose_chunks, rank_by_surprise
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


def test_the_learned_policy_as_served_is_the_pipelines(cases, models):
    checkpoint = models.checkpoint.with_chunk_size(8)
    pipeline, tokenizer = Pipeline(checkpoint), checkpoint.decoder_tokenizer
    chosen = choose_chunks(cases, compressed(8, "learned as served", 0.3))
    case, template = cases.cases[0], checkpoint.config.template
    passages = [
        tokenizer.decode(ids)[len(template.passage_prefix) : -len(template.passage_suffix)] for ids in case.passages
    ]
    question = tokenizer.decode(case.question_ids).removeprefix(template.passage_prefix)
    prepared = prepare_context(Request(question, passages), pipeline.chunker)
    assert list(prepared.chunks) == case.chunks(8)
    assert pipeline.select(ExpansionOptions(0.3), prepared, *pipeline.encode(prepared)) == sorted(chosen[0])


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
    readings = [read(models.plain, prompts, models.bos_id) for prompts in (full, expanded)]
    for one, other in zip(*readings, strict=True):
        np.testing.assert_allclose(one.losses, other.losses, atol=1e-4)


def test_the_truncated_context_is_its_end_in_the_slots_of_the_compressed_one(cases):
    truncated, mixed = (
        build_prompts(cases, one)
        for one in (Condition("truncated", 8, expand_fraction=0.2), compressed(8, "random", 0.2))
    )
    for case, short, other in zip(cases.cases, truncated, mixed, strict=True):
        tokens = short.example.chunks[0].token_ids
        assert list(tokens) == case.token_ids[-len(tokens) :]
        # A passage's last chunk may be shorter than the others.
        assert 0 <= short.num_slots - other.num_slots <= 7 * expansion_budget(0.2, case.num_chunks(8))
        assert len(tokens) == truncated_length(case, Condition("truncated", 8, expand_fraction=0.2))


def test_the_controls_keep_the_layout_and_lose_the_content(cases):
    true, shuffled, zeroed = (
        build_prompts(cases, compressed(8, "learned", 0.2, control)) for control in ("true", "shuffled", "zeroed")
    )
    for one, other, none in zip(true, shuffled, zeroed, strict=True):
        assert one.example == other.example == none.example
        assert one.embeddings.shape == other.embeddings.shape
        assert not torch.equal(one.embeddings, other.embeddings)
        assert not none.embeddings.any()
