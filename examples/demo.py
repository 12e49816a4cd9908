"""Runs the main job in one command: starts Triton, asks held-out questions compressed and plain, shows what each cost.

    python -m examples.demo

It needs an exported repository (`refrag export --checkpoint checkpoints/demo`). The questions are drawn with a fixed
seed from the made-up world. They are about entities that training never saw, over the passages that BM25 finds for
them.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refrag.config import RefragConfig
from refrag.context.chunking import Chunker
from refrag.data.contexts import ContextMaker, TokenisedContext
from refrag.data.tasks import Task
from refrag.embedded import EmbeddedServer
from refrag.errors import RefragError
from refrag.machine.environment import describe_environment
from refrag.model.tokenizers import load_decoder_tokenizer
from refrag.reporting import table
from refrag_client import Answer, RefragClient
from refrag_client import RefragError as ClientError

NUM_PASSAGES = 15
TASKS: tuple[Task, ...] = ("fact", "exact", "yesno", "multihop", "comparison")
MAX_ANSWER_TOKENS = 24
LABEL_WIDTH = 12


@dataclass(frozen=True)
class Pair:
    """The two answers to a question, compressed and plain, beside the expected one."""

    expected: str
    compressed: Answer
    plain: Answer


def run_demo(repository: Path, num_questions: int, seed: int) -> dict[str, Any]:
    """Serve `repository`, ask, print every answer as it streams, and return the medians."""
    deployed = repository / "preprocessing" / "1" / "checkpoint"
    config = RefragConfig.load(deployed)
    chunker = Chunker(config, load_decoder_tokenizer(deployed))
    contexts = draw_contexts(chunker, num_questions + 1, seed)
    print("Starting tritonserver …", flush=True)
    with (
        # A store of its own, so that a second demo shows what the first did.
        tempfile.TemporaryDirectory() as store,
        EmbeddedServer(
            repository, http_port=0, grpc_port=0, metrics_port=0, environment={"REFRAG_STORE_DISK_PATH": store}
        ) as server,
        RefragClient(server.grpc_address) as client,
    ):
        print(f"Serving on {server.grpc_address} (gRPC) and {server.http_address} (HTTP).")
        warm_up(client, contexts.pop())
        pairs = [ask_twice(client, context, number) for number, context in enumerate(contexts, start=1)]
    return summarise(pairs, config)


def draw_contexts(chunker: Chunker, count: int, seed: int) -> list[TokenisedContext]:
    """Return `count` held-out questions, of the tasks in turn, each over the passages retrieved for it."""
    rng = random.Random(seed)
    maker = ContextMaker.draw(rng, chunker, "heldout")
    return [maker.ask_one(rng, TASKS[number % len(TASKS)], NUM_PASSAGES) for number in range(count)]


def warm_up(client: RefragClient, context: TokenisedContext) -> None:
    """Ask one uncounted question each way: the first use of a shape allocates memory that later ones reuse."""
    for expand_fraction in (None, 1.0):
        client.generate(context.questions[0].text, context.passages, expand_fraction=expand_fraction, max_tokens=2)


def ask_twice(client: RefragClient, context: TokenisedContext, number: int) -> Pair:
    question = context.questions[0]
    print(f"\n{number}. {question.text}   ({len(context.passages)} passages)")
    print(f"   {'expected':{LABEL_WIDTH}} {question.answer}")
    compressed = show(client, "compressed", context, expand_fraction=None)
    plain = show(client, "plain", context, expand_fraction=1.0)
    return Pair(question.answer, compressed, plain)


def show(client: RefragClient, label: str, context: TokenisedContext, expand_fraction: float | None) -> Answer:
    """Print one answer as it streams, then what it cost."""
    question = context.questions[0]
    print(f"   {label:{LABEL_WIDTH}}", end="", flush=True)
    options = {"expand_fraction": expand_fraction, "max_tokens": MAX_ANSWER_TOKENS}
    with client.stream(question.text, context.passages, **options) as stream:  # type: ignore[arg-type]
        for piece in stream:
            print(piece.text, end="", flush=True)
    answer = stream.answer
    mark = "right" if answer.text.strip() == question.answer else "wrong"
    figures = answer.statistics
    print(
        f"   [{mark}; {figures.context_tokens} context tokens in {figures.prompt_slots} prompt slots, "
        f"{figures.num_expanded_chunks} of {figures.num_chunks} chunks expanded, "
        f"first token after {1000 * (answer.ttft_seconds or 0):.0f} ms]"
    )
    return answer


def summarise(pairs: list[Pair], config: RefragConfig) -> dict[str, Any]:
    compressed, plain = [pair.compressed for pair in pairs], [pair.plain for pair in pairs]
    return {
        "num_questions": len(pairs),
        "num_right_compressed": sum(pair.compressed.text.strip() == pair.expected for pair in pairs),
        "num_right_plain": sum(pair.plain.text.strip() == pair.expected for pair in pairs),
        "context_tokens": statistics.median(answer.statistics.context_tokens for answer in compressed),
        "prompt_slots_compressed": statistics.median(answer.statistics.prompt_slots for answer in compressed),
        "prompt_slots_plain": statistics.median(answer.statistics.prompt_slots for answer in plain),
        "ttft_ms_compressed": median_ttft_ms(compressed),
        "ttft_ms_plain": median_ttft_ms(plain),
        "expand_fraction": config.expand_fraction,
        "chunk_size": config.chunk_size,
    }


def markdown_table(summary: dict[str, Any]) -> str:
    """Return the medians as a Markdown table with machine, commit and command."""
    about = f"{summary['num_questions']} held-out questions, medians"
    rows = [
        [
            title,
            f"{summary['context_tokens']:.0f}",
            f"{summary[f'prompt_slots_{way}']:.0f}",
            f"{summary[f'ttft_ms_{way}']:.0f} ms",
            f"{summary[f'num_right_{way}']} of {summary['num_questions']}",
        ]
        for way, title in [("plain", "plain decoder"), ("compressed", _compressed_title(summary))]
    ]
    header = [about, "context tokens", "prompt slots", "first token", "right answers"]
    return f"{table(header, rows)}\n\n`make results` on {summary['machine']}, commit {summary['commit']}."


def _compressed_title(summary: dict[str, Any]) -> str:
    percent = f"{100 * summary['expand_fraction']:.0f}%"
    return f"compressed, k = {summary['chunk_size']}, at most {percent} of the chunks expanded"


def median_ttft_ms(answers: list[Answer]) -> float | None:
    times = [answer.ttft_seconds for answer in answers if answer.ttft_seconds is not None]
    return round(1000 * statistics.median(times), 1) if times else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--num-questions", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also write the last line, with machine and commit, to this file")
    arguments = parser.parse_args()
    try:
        summary = run_demo(arguments.repository, arguments.num_questions, arguments.seed)
    except (RefragError, ClientError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    if arguments.output:
        arguments.output.write_text(json.dumps({**summary, **describe_environment()}, indent=2) + "\n")
    print(f"\n{json.dumps(summary)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
