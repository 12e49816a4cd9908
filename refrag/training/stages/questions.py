"""Contexts, examples and policy logits for the stages that ask questions."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from refrag.data.contexts import ContextMaker, TokenisedContext
from refrag.data.tasks import SINGLE_TASKS, Task
from refrag.model.policy import ExpansionPolicy
from refrag.teacher_forcing.batches import ContextBatch, MixedExample, question_segments

# P (context, question) pairs, C chunks of the longest context, N chunks of the batch, E encoder width

QUESTIONS_PER_CONTEXT = 6
TOKENS_PER_PASSAGE, TOKENS_PER_QUESTION = 72, 28


def draw_contexts(
    maker: ContextMaker,
    rng: random.Random,
    num_passages: int,
    num_tokens: int,
    tasks: Sequence[Task],
    rival_share: float,
) -> Sequence[TokenisedContext]:
    """Draw contexts with questions, all of the maker's world: about `num_tokens` of plain text, but at least two.

    rival_share: share of the contexts that ask for single facts among rivals, where `tasks` has a task for these.
    """
    single_tasks = [task for task in tasks if task in SINGLE_TASKS]
    return [
        maker.ask_among_rivals(rng, num_passages, QUESTIONS_PER_CONTEXT, single_tasks)
        if single_tasks and rng.random() < rival_share
        else maker.ask_many(rng, num_passages, QUESTIONS_PER_CONTEXT, tasks)
        for _ in range(num_contexts(num_passages, num_tokens))
    ]


def num_contexts(num_passages: int, num_tokens: int) -> int:
    """Return how many contexts of `num_passages` passages make a batch of about `num_tokens` tokens; at least two."""
    return max(2, num_tokens // plain_tokens(num_passages))


def plain_tokens(num_passages: int) -> int:
    """Return about how many tokens a context of `num_passages` passages and its questions have."""
    return num_passages * TOKENS_PER_PASSAGE + QUESTIONS_PER_CONTEXT * TOKENS_PER_QUESTION


def plain_example(
    context: TokenisedContext, context_weight: float, answer_weight: float, question_weight: float
) -> MixedExample:
    """Return an example with the context as plain tokens, then all of its questions one after another."""
    segments = [
        segment
        for question in context.questions
        for segment in question_segments(question, answer_weight, question_weight)
    ]
    return MixedExample(context.chunks, range(len(context.chunks)), segments, context_weight=context_weight)


def train_policy(policy: ExpansionPolicy, trains: bool = True) -> None:
    """Let those parts of the policy train that it uses, or, unless `trains`, none.

    A policy that does not see the question leaves parts unused, for whose gradients processes would wait.
    """
    policy.requires_grad_(trains)
    if not policy.question_aware:
        for unused in (policy.question_in, policy.query, policy.key, policy.neighbourhood_weight):
            unused.requires_grad_(False)


def policy_logits(policy: torch.nn.Module, batch: ContextBatch, vectors: Tensor, question_vectors: Tensor) -> Tensor:
    """Return the policy's logits for each question of the batch, from all chunk and question vectors.  -> (P, C)"""
    rows = batch.policy
    return policy(vectors[rows.chunk_rows], rows.passages, question_vectors[rows.question_rows], rows.question_mask)
