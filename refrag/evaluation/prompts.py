"""Prompts of the cases under a condition: the chunks to expand, and the prompt that results.

Compressed contexts go through the pipeline's own steps. Served policies select as they do for a request; the other
selections are there to be compared with them.
"""

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from refrag.config import LEARNED_POLICY
from refrag.decoders.base import MixedPrompt
from refrag.errors import CheckpointError
from refrag.evaluation.case_set import CaseSet
from refrag.evaluation.cases import Case
from refrag.evaluation.conditions import POLICY_OPTIONS, READS_QUESTION, Condition, Selection
from refrag.evaluation.reading import TargetedPrompt
from refrag.model.policy import ExpansionPolicy
from refrag.pipeline import Pipeline
from refrag.policies.budget import expansion_budget
from refrag.request import ExpansionOptions

# C chunks, E encoder width, D decoder width

# Case set, number of the case, condition -> numbers of the chunks to expand
Chooser = Callable[[CaseSet, int, Condition], list[int]]


def build_prompts(cases: CaseSet, condition: Condition) -> list[TargetedPrompt]:
    """Return the prompt of each case under the condition, with the case's target."""
    if condition.form != "compressed":
        return [_build_plain(cases, case, condition) for case in cases.cases]
    chosen = choose_chunks(cases, condition)
    return [_build_compressed(cases, number, condition, expanded) for number, expanded in enumerate(chosen)]


def choose_chunks(cases: CaseSet, condition: Condition) -> list[list[int]]:
    """Return for each case the numbers of the chunks to expand."""
    choose = CHOOSERS.get(condition.selection, functools.partial(choose_as_served, condition.selection))
    return [choose(cases, number, condition) for number in range(len(cases.cases))]


def truncated_length(case: Case, condition: Condition) -> int:
    """Return the slots of the context if it were compressed at the condition's chunk size and fraction."""
    return case.num_chunks(condition.chunk_size) + _budget(case, condition) * (condition.chunk_size - 1)


def choose_as_served(policy: str, cases: CaseSet, number: int, condition: Condition) -> list[int]:
    """Return the chunks that the server would expand with its policy of this name."""
    return _select(cases, number, condition, cases.pipeline(condition.chunk_size), policy)


def choose_learned(cases: CaseSet, number: int, condition: Condition) -> list[int]:
    return _spend_by(cases.models.checkpoint.require_policy(), cases, number, condition)


def choose_by_another(selection: Selection, cases: CaseSet, number: int, condition: Condition) -> list[int]:
    if selection not in cases.models.policies:
        sight = "sees" if READS_QUESTION[selection] else "does not see"
        raise CheckpointError(
            f"the selection '{selection}' needs a policy that {sight} the question: {POLICY_OPTIONS[selection]}"
        )
    return _spend_by(cases.models.policies[selection], cases, number, condition)


def choose_surprising(cases: CaseSet, number: int, condition: Condition) -> list[int]:
    ranked = rank_by_surprise(cases, number, condition.chunk_size)
    return ranked[::-1][: _budget(cases.cases[number], condition)]


def choose_expected(cases: CaseSet, number: int, condition: Condition) -> list[int]:
    return rank_by_surprise(cases, number, condition.chunk_size)[: _budget(cases.cases[number], condition)]


def choose_evidence(cases: CaseSet, number: int, condition: Condition) -> list[int]:
    case = cases.cases[number]
    return case.evidence_chunks(condition.chunk_size)[: _budget(case, condition)]


# Every other selection is a served policy of that name.
CHOOSERS: dict[Selection, Chooser] = {
    "learned as served": functools.partial(choose_as_served, LEARNED_POLICY),
    "learned": choose_learned,
    **{name: functools.partial(choose_by_another, name) for name in READS_QUESTION},
    "perplexity": choose_surprising,
    "perplexity reversed": choose_expected,
    "oracle": choose_evidence,
}


def request_seed(cases: CaseSet, number: int) -> int:
    """Return the seed that the case's request would carry for the random policy."""
    return random.Random(f"{cases.seed} {number}").getrandbits(32)


def rank_by_surprise(cases: CaseSet, number: int, chunk_size: int) -> list[int]:
    """Return the numbers of the chunks, the one that surprises the plain decoder least first."""
    lengths = cases.cases[number].chunks(chunk_size).lengths
    losses = np.split(cases.token_losses()[number], np.cumsum(lengths)[:-1])
    return np.argsort([chunk.mean() for chunk in losses], kind="stable").tolist()


def _select(cases: CaseSet, number: int, condition: Condition, pipeline: Pipeline, policy: str) -> list[int]:
    one = cases.encoded(condition.chunk_size)[number]
    options = ExpansionOptions(condition.expand_fraction, policy, request_seed(cases, number))
    return list(pipeline.select(options, one.context, one.vectors, one.question_vectors).numbers)


def _spend_by(network: ExpansionPolicy, cases: CaseSet, number: int, condition: Condition) -> list[int]:
    """Select by this network as the server would, but spend the whole budget instead of stopping early."""
    checkpoint = cases.pipeline(condition.chunk_size).checkpoint
    config = replace(checkpoint.config, policy_confidence=1.0)
    pipeline = Pipeline(replace(checkpoint, policy=network, config=config))
    return _select(cases, number, condition, pipeline, LEARNED_POLICY)


def _budget(case: Case, condition: Condition) -> int:
    return expansion_budget(condition.expand_fraction, case.num_chunks(condition.chunk_size))


def _build_plain(cases: CaseSet, case: Case, condition: Condition) -> TargetedPrompt:
    length = {"none": 0, "full": case.num_tokens}.get(condition.form, truncated_length(case, condition))
    context = case.token_ids[max(0, case.num_tokens - length) :]
    return cases.plain_prompt([*context, *case.prompt_ids], case.target_ids)


def _build_compressed(cases: CaseSet, number: int, condition: Condition, expanded: Sequence[int]) -> TargetedPrompt:
    """Return the pipeline's prompt with its chunk embeddings, or with what the control puts in their place."""
    one, vectors = cases.encoded(condition.chunk_size)[number], cases.encoded(condition.chunk_size)[number].vectors
    if condition.embeddings == "shuffled":
        vectors = _vectors_of_another(cases, number, condition.chunk_size)
    _, mixed = cases.pipeline(condition.chunk_size).build_prompt(one.context, expanded, vectors)
    if condition.embeddings == "zeroed":
        mixed = MixedPrompt(mixed.input_ids, torch.zeros_like(mixed.chunk_embeddings))
    return TargetedPrompt(mixed, cases.cases[number].target_ids, len(expanded))


def _vectors_of_another(cases: CaseSet, number: int, chunk_size: int) -> torch.Tensor:
    """Return vectors of another case's chunks, repeated from the first if there are too few.  -> (C, E)"""
    encoded = cases.encoded(chunk_size)
    # Half of all cases away, so that it belongs to another world, which cannot hold the answer by chance.
    other = encoded[(number + max(1, len(encoded) // 2)) % len(encoded)].vectors
    return other[torch.arange(len(encoded[number].vectors)) % len(other)]
