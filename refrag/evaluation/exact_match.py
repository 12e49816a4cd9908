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
from typing import Literal

import torch
from tqdm import tqdm

from refrag.chunking import Chunk, Chunker
from refrag.environment import describe_environment
from refrag.evaluation.report import markdown_table
from refrag.model.checkpoint import Checkpoint, load_checkpoint
from refrag.pipeline import Pipeline, encode_chunks, prepare_context
from refrag.request import ContextRequest, SamplingParams, SelectionPolicy
from refrag.selection import expansion_budget, select_chunks
from refrag.training.data import TokenisedContext, draw_context

Selection = Literal["learned", "random", "oracle", "none", "all"]

MAX_ANSWER_TOKENS = 16


@dataclass(frozen=True)
class Condition:
    """How the context reaches the decoder.

    selection: "oracle" expands the chunks that hold the answer first, then random ones up to the budget.
    shuffled: the control. Every chunk vector comes from another question's context, so what the policy and the
    decoder see as compressed is about something else; expanded chunks keep their own tokens.
    """

    name: str
    chunk_size: int
    selection: Selection
    expand_fraction: float
    shuffled: bool = False


@dataclass(frozen=True)
class Result:
    condition: Condition
    num_passages: int
    num_questions: int
    exact_match: float
    interval_95: tuple[float, float]
    mean_context_tokens: float
    mean_prompt_slots: float


def conditions(chunk_sizes: Sequence[int], expand_fraction: float) -> list[Condition]:
    """The plain decoder, no context at all, then for each k everything compressed and each way of expanding."""
    listed = [Condition("plain", chunk_sizes[-1], "all", 1.0)]
    for k in chunk_sizes:
        listed += [
            Condition(f"k={k} compressed", k, "none", 0.0),
            Condition(f"k={k} compressed, shuffled", k, "none", 0.0, shuffled=True),
            Condition(f"k={k} random", k, "random", expand_fraction),
            Condition(f"k={k} learned", k, "learned", expand_fraction),
            Condition(f"k={k} learned, shuffled", k, "learned", expand_fraction, shuffled=True),
            Condition(f"k={k} oracle", k, "oracle", expand_fraction),
        ]
    return listed


def evaluate(checkpoint: Checkpoint, condition: Condition, num_passages: int, num_questions: int, seed: int) -> Result:
    """Ask one question of each of `num_questions` held-out contexts."""
    pipeline = with_chunk_size(checkpoint, condition.chunk_size)
    contexts = draw_heldout(pipeline.chunker, num_passages, num_questions, seed)
    right = slots = 0
    for index, context in enumerate(contexts):
        other = contexts[(index + 1) % len(contexts)]
        answer, num_slots = ask(pipeline, context, other if condition.shuffled else None, condition, seed + index)
        right += answer == context.questions[0].answer
        slots += num_slots
    return Result(
        condition=condition,
        num_passages=num_passages,
        num_questions=num_questions,
        exact_match=round(right / num_questions, 4),
        interval_95=wilson_interval(right, num_questions),
        mean_context_tokens=round(sum(context.num_tokens for context in contexts) / num_questions, 1),
        mean_prompt_slots=round(slots / num_questions, 1),
    )


def ask(
    pipeline: Pipeline,
    context: TokenisedContext,
    vectors_from: TokenisedContext | None,
    condition: Condition,
    seed: int,
) -> tuple[str, int]:
    """The answer to the context's first question, and the slots its prompt took."""
    question = context.questions[0]
    prepared = prepare_context(ContextRequest(question.text, context.passages), pipeline.chunker)
    vectors, question_vectors = pipeline.encode(prepared)
    if vectors_from is not None:
        vectors = borrowed_vectors(pipeline, vectors_from.chunks, len(vectors))
    expanded = choose(pipeline, context, condition, vectors, question_vectors, seed)
    prompt, mixed = pipeline.build_prompt(prepared, expanded, vectors)
    deltas = pipeline.generate(mixed, SamplingParams(max_tokens=MAX_ANSWER_TOKENS))
    return "".join(delta.text for delta in deltas).strip(), prompt.num_slots


def choose(
    pipeline: Pipeline,
    context: TokenisedContext,
    condition: Condition,
    vectors: torch.Tensor,
    question_vectors: torch.Tensor,
    seed: int,
) -> list[int]:
    if condition.selection == "oracle":
        labels = context.questions[0].answer_chunks
        others = [number for number in range(len(context.chunks)) if number not in labels]
        random.Random(seed).shuffle(others)
        return sorted([*labels, *others][: expansion_budget(condition.expand_fraction, len(context.chunks))])
    policy: SelectionPolicy = condition.selection
    request = ContextRequest(
        context.questions[0].text, expand_fraction=condition.expand_fraction, policy=policy, seed=seed
    )
    return select_chunks(request, context.chunks, pipeline.checkpoint.policy, vectors, question_vectors)


def borrowed_vectors(pipeline: Pipeline, chunks: Sequence[Chunk], count: int) -> torch.Tensor:
    """`count` vectors of another context's chunks, repeated if it has fewer.  -> (count, E)"""
    vectors = encode_chunks(pipeline.checkpoint.encoder, pipeline.chunker, chunks)
    return vectors[torch.arange(count) % len(vectors)]


def draw_heldout(chunker: Chunker, num_passages: int, num_contexts: int, seed: int) -> list[TokenisedContext]:
    """Contexts about held-out entities; the same for every condition, since only the chunks depend on k."""
    rng = random.Random(f"heldout {seed} {num_passages}")
    return [draw_context(rng, chunker, num_passages, 1, "heldout") for _ in range(num_contexts)]


def with_chunk_size(checkpoint: Checkpoint, chunk_size: int) -> Pipeline:
    return Pipeline(replace(checkpoint, config=replace(checkpoint.config, chunk_size=chunk_size)))


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
    parser.add_argument("--num-passages", type=int, nargs="+", default=[1, 4, 20])
    parser.add_argument("--expand-fraction", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    checkpoint = load_checkpoint(arguments.checkpoint)
    listed = conditions(checkpoint.config.trained_chunk_sizes, arguments.expand_fraction)
    results = [
        evaluate(checkpoint, condition, num_passages, arguments.num_questions, arguments.seed)
        for num_passages in arguments.num_passages
        for condition in tqdm(listed, desc=f"{num_passages} passages", disable=None)
    ]
    report = {
        "command": " ".join(["python -m refrag.evaluation.exact_match", *sys.argv[1:]]),
        **describe_environment(),
        "seed": arguments.seed,
        "results": [asdict(result) for result in results],
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(markdown_table(report))


if __name__ == "__main__":
    main()
