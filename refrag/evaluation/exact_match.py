"""Exact match on held-out questions, for the plain decoder, every way of compressing, and the controls.

    python -m refrag.evaluation.exact_match --checkpoint checkpoints/demo --output checkpoints/demo/evaluation.json

All conditions answer the same questions. A question counts as right if the whole answer equals the expected one.
"""

import argparse
import json
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Literal

import torch
from tqdm import tqdm

from refrag.chunking import Chunk, Chunker
from refrag.context import prepare_context
from refrag.environment import describe_environment
from refrag.evaluation.report import markdown_table
from refrag.model.checkpoint import Checkpoint, load_checkpoint
from refrag.pipeline import Pipeline, encode_chunks
from refrag.request import ContextRequest, ExpansionOptions, SamplingParams
from refrag.selection import expansion_budget
from refrag.training.data import TokenisedContext, TokenisedQuestion, draw_context

Selection = Literal["learned", "random", "oracle", "none", "all"]

MAX_ANSWER_TOKENS = 16


@dataclass(frozen=True)
class Condition:
    """How the context reaches the decoder.

    selection: "oracle" expands just the chunks that hold the answer, as far as the budget goes.
    whole_budget: the learned policy spends its budget however sure it is (the paper's rule).
    shuffled: the control, in which chunk vectors come from another question's context. "embeddings": only those that
    the decoder reads; the chunks to expand are chosen on the true ones. "vectors": those of the policy as well. What
    is lost against the same condition unshuffled is what the decoder, or the policy too, learns from vectors.
    """

    name: str
    chunk_size: int
    selection: Selection
    expand_fraction: float
    shuffled: Literal["embeddings", "vectors"] | None = None
    whole_budget: bool = False
    with_context: bool = True


@dataclass(frozen=True)
class Result:
    condition: Condition
    num_passages: int
    num_questions: int
    exact_match: float
    interval_95: tuple[float, float]
    mean_context_tokens: float
    mean_expanded_chunks: float
    mean_prompt_slots: float


@dataclass(frozen=True)
class Outcome:
    is_right: bool
    num_expanded: int
    num_slots: int


def conditions(chunk_sizes: Sequence[int], expand_fraction: float) -> list[Condition]:
    """No context, the plain decoder, then for each k everything compressed and each way of expanding."""
    largest = max(chunk_sizes)
    listed = [
        Condition("no context", largest, "none", 0.0, with_context=False),
        Condition("plain decoder", largest, "all", 1.0),
    ]
    for k in chunk_sizes:
        share = f"{100 * expand_fraction:.0f}%"
        listed += [
            Condition(f"k={k}, all compressed", k, "none", 0.0),
            Condition(f"k={k}, all compressed, shuffled", k, "none", 0.0, shuffled="embeddings"),
            Condition(f"k={k}, {share} random", k, "random", expand_fraction),
            Condition(f"k={k}, {share} learned", k, "learned", expand_fraction),
            Condition(f"k={k}, {share} learned, whole budget", k, "learned", expand_fraction, whole_budget=True),
            Condition(f"k={k}, {share} learned, embeddings shuffled", k, "learned", expand_fraction, "embeddings"),
            Condition(f"k={k}, {share} learned, vectors shuffled", k, "learned", expand_fraction, "vectors"),
            Condition(f"k={k}, {share} oracle", k, "oracle", expand_fraction),
        ]
    return listed


def evaluate(checkpoint: Checkpoint, condition: Condition, num_passages: int, num_questions: int, seed: int) -> Result:
    """Ask one question of each of `num_questions` held-out contexts."""
    confidence = 1.0 if condition.whole_budget else checkpoint.config.policy_confidence
    config = replace(checkpoint.config, chunk_size=condition.chunk_size, policy_confidence=confidence)
    pipeline = Pipeline(replace(checkpoint, config=config))
    contexts = draw_heldout(pipeline.chunker, num_passages, num_questions, seed)
    outcomes = [
        ask(pipeline, condition, context, contexts[(index + 1) % num_questions], seed + index)
        for index, context in enumerate(contexts)
    ]
    right = sum(outcome.is_right for outcome in outcomes)
    return Result(
        condition=condition,
        num_passages=num_passages,
        num_questions=num_questions,
        exact_match=round(right / num_questions, 4),
        interval_95=wilson_interval(right, num_questions),
        mean_context_tokens=round(mean(context.num_tokens for context in contexts), 1),
        mean_expanded_chunks=round(mean(outcome.num_expanded for outcome in outcomes), 2),
        mean_prompt_slots=round(mean(outcome.num_slots for outcome in outcomes), 1),
    )


def ask(
    pipeline: Pipeline, condition: Condition, context: TokenisedContext, other: TokenisedContext, seed: int
) -> Outcome:
    """Answer the context's first question; `other` lends its vectors to the control."""
    question = context.questions[0]
    passages = context.passages if condition.with_context else []
    prepared = prepare_context(ContextRequest(question.text, passages), pipeline.chunker)
    vectors, question_vectors = pipeline.encode(prepared)
    borrowed = borrowed_vectors(pipeline, other.chunks, len(vectors)) if condition.shuffled else vectors
    if condition.selection == "oracle":
        expanded = choose_oracle(question, len(prepared.chunks), condition.expand_fraction)
    else:
        options = ExpansionOptions(condition.expand_fraction, condition.selection, seed)
        seen_by_policy = borrowed if condition.shuffled == "vectors" else vectors
        expanded = pipeline.select(options, prepared, seen_by_policy, question_vectors)
    prompt, mixed = pipeline.build_prompt(prepared, expanded, borrowed)
    deltas = pipeline.generate(mixed, SamplingParams(max_tokens=MAX_ANSWER_TOKENS))
    answer = "".join(delta.text for delta in deltas)
    return Outcome(is_exact_match(answer, question.answer), len(expanded), prompt.num_slots)


def is_exact_match(answer: str, expected: str) -> bool:
    return answer.strip() == expected


def choose_oracle(question: TokenisedQuestion, num_chunks: int, expand_fraction: float) -> list[int]:
    return question.answer_chunks[: expansion_budget(expand_fraction, num_chunks)]


def borrowed_vectors(pipeline: Pipeline, chunks: Sequence[Chunk], count: int) -> torch.Tensor:
    """`count` vectors of another context's chunks, repeated if it has fewer.  -> (count, E)"""
    vectors = encode_chunks(pipeline.checkpoint.encoder, pipeline.chunker, chunks)
    return vectors[torch.arange(count) % len(vectors)]


def draw_heldout(chunker: Chunker, num_passages: int, num_contexts: int, seed: int) -> list[TokenisedContext]:
    """Contexts about held-out entities; the same for every condition, since only the chunks depend on k."""
    rng = random.Random(f"heldout {seed} {num_passages}")
    return [draw_context(rng, chunker, num_passages, 1, "heldout") for _ in range(num_contexts)]


def wilson_interval(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95% confidence interval of a proportion (Wilson's score interval)."""
    share = right / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return round(max(0.0, middle - half), 4), round(min(1.0, middle + half), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="JSON file to write (default: standard output only)")
    parser.add_argument("--num-questions", type=int, default=200, help="per condition and number of passages")
    parser.add_argument("--num-passages", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--expand-fraction", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    if arguments.num_questions < 2:
        parser.error("the control borrows another question's vectors; ask at least 2")

    environment = describe_environment()
    checkpoint = load_checkpoint(arguments.checkpoint)
    listed = conditions(checkpoint.config.trained_chunk_sizes, arguments.expand_fraction)
    results = [
        evaluate(checkpoint, condition, num_passages, arguments.num_questions, arguments.seed)
        for num_passages in arguments.num_passages
        for condition in tqdm(listed, desc=f"{num_passages} passages", disable=None)
    ]
    report = {
        "command": " ".join(["python -m refrag.evaluation.exact_match", *sys.argv[1:]]),
        **environment,
        "seed": arguments.seed,
        "results": [asdict(result) for result in results],
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(markdown_table(report))


if __name__ == "__main__":
    main()
