"""Which chunks each condition expands, all within the same budget."""

import functools
import random
from collections.abc import Callable

import numpy as np

from refrag.errors import CheckpointError
from refrag.evaluation.conditions import POLICY_OPTIONS, READS_QUESTION, Condition, Selection
from refrag.evaluation.encoding import CaseSet
from refrag.model.policy import ExpansionPolicy, pick_in_turn
from refrag.policies.budget import expansion_budget
from refrag.policies.learned import score_chunks

# Case set, number of the case, chunk size, budget -> numbers of the chunks to expand
Chooser = Callable[[CaseSet, int, int, int], list[int]]


def choose_chunks(cases: CaseSet, condition: Condition) -> list[list[int]]:
    """For each case the numbers of the chunks to expand."""
    choose = CHOOSERS[condition.selection]
    size = condition.chunk_size
    budgets = [expansion_budget(condition.expand_fraction, case.num_chunks(size)) for case in cases.cases]
    return [choose(cases, number, size, budget) if budget else [] for number, budget in enumerate(budgets)]


def choose_none(cases: CaseSet, number: int, chunk_size: int, budget: int) -> list[int]:
    return []


def choose_random(cases: CaseSet, number: int, chunk_size: int, budget: int) -> list[int]:
    rng = random.Random(f"{cases.seed} {number}")
    return rng.sample(range(cases.cases[number].num_chunks(chunk_size)), budget)


def choose_surprising(cases: CaseSet, number: int, chunk_size: int, budget: int) -> list[int]:
    return rank_by_surprise(cases, number, chunk_size)[::-1][:budget]


def choose_expected(cases: CaseSet, number: int, chunk_size: int, budget: int) -> list[int]:
    return rank_by_surprise(cases, number, chunk_size)[:budget]


def choose_learned(cases: CaseSet, number: int, chunk_size: int, budget: int) -> list[int]:
    return ask_policy(cases, cases.models.checkpoint.require_policy(), number, chunk_size, budget)


def choose_as_served(cases: CaseSet, number: int, chunk_size: int, budget: int) -> list[int]:
    checkpoint = cases.models.checkpoint
    policy, confidence = checkpoint.require_policy(), checkpoint.config.policy_confidence
    return ask_policy(cases, policy, number, chunk_size, budget, confidence)


def choose_by_another(selection: Selection, cases: CaseSet, number: int, chunk_size: int, budget: int) -> list[int]:
    if selection not in cases.models.policies:
        sight = "sees" if READS_QUESTION[selection] else "does not see"
        raise CheckpointError(
            f"the selection '{selection}' needs a policy that {sight} the question: {POLICY_OPTIONS[selection]}"
        )
    return ask_policy(cases, cases.models.policies[selection], number, chunk_size, budget)


def choose_evidence(cases: CaseSet, number: int, chunk_size: int, budget: int) -> list[int]:
    return cases.cases[number].evidence_chunks(chunk_size)[:budget]


CHOOSERS: dict[Selection, Chooser] = {
    "none": choose_none,
    "random": choose_random,
    "perplexity": choose_surprising,
    "perplexity reversed": choose_expected,
    **{name: functools.partial(choose_by_another, name) for name in READS_QUESTION},
    "learned": choose_learned,
    "learned as served": choose_as_served,
    "oracle": choose_evidence,
}


def ask_policy(
    cases: CaseSet, policy: ExpansionPolicy, number: int, chunk_size: int, budget: int, confidence: float = 1.0
) -> list[int]:
    one = cases.encoded(chunk_size)[number]
    logits = score_chunks(policy, np.array([chunk.passage for chunk in one.chunks]), one.vectors, one.question_vectors)
    return pick_in_turn(logits, budget, confidence)


def rank_by_surprise(cases: CaseSet, number: int, chunk_size: int) -> list[int]:
    """Numbers of the chunks, the one that surprises the plain decoder least first."""
    lengths = [len(chunk) for chunk in cases.cases[number].chunks(chunk_size)]
    losses = np.split(cases.token_losses()[number], np.cumsum(lengths)[:-1])
    return np.argsort([chunk.mean() for chunk in losses], kind="stable").tolist()
