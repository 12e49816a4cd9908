"""Runs the main job in one command: starts Triton, indexes a corpus, asks questions about it compressed and plain.

    python -m examples.demo

It needs an exported repository (`refrag export --checkpoint checkpoints/smollm2`). The corpus is the documentation of
the Python that runs it. The questions in questions.jsonl were written for it by hand; no decoder was trained on them or
on the documentation. An answer counts as right if it contains an accepted one. Another corpus and other questions:

    python -m examples.demo --corpus FOLDER --questions FILE
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.documentation import read_documentation
from refrag.config import RefragConfig
from refrag.embedded import EmbeddedServer
from refrag.errors import RefragError
from refrag.evaluation.scores import contains_answer, normalise
from refrag.machine.environment import describe_environment
from refrag.reporting import table
from refrag_client import Answer, GenerateOptions, InvalidRequest, RefragClient, StoreClient
from refrag_client import RefragError as ClientError
from refrag_client.corpus import Corpus, read_folder

QUESTIONS = Path(__file__).with_name("questions.jsonl")
NUM_PASSAGES = 10
MAX_ANSWER_TOKENS = 24
# The most that a server allows: a plain prompt takes long on a slow or busy machine.
LONGEST_ANSWER_SECONDS = 600
# Passages indexed in one request, whose chunks the encoder reads in batches of its own.
INDEXED_AT_ONCE = 50
LABEL_WIDTH = 12


@dataclass(frozen=True)
class Question:
    """A question, the answers that are accepted, and the passages that were found for it."""

    text: str
    accepted: list[str]
    passages: list[str]

    def is_right(self, answer: str) -> bool:
        return contains_answer(answer, self.accepted) == 1.0


@dataclass(frozen=True)
class Pair:
    """The two answers to a question, compressed and plain."""

    question: Question
    compressed: Answer
    plain: Answer

    @property
    def agree(self) -> bool:
        return normalise(self.compressed.text) == normalise(self.plain.text)


def run_demo(repository: Path, passages: list[str], questions: Path) -> dict[str, Any]:
    """Serve `repository`, index, ask, print every answer as it streams, and return counts and medians."""
    config = RefragConfig.load(repository / "preprocessing" / "1" / "checkpoint")
    asked = list(read_questions(questions, Corpus(passages)))
    print("Starting tritonserver …", flush=True)
    with (
        # A store of its own, so that a second demo shows what the first did.
        tempfile.TemporaryDirectory() as store,
        EmbeddedServer(
            repository, http_port=0, grpc_port=0, metrics_port=0, environment={"REFRAG_STORE_DISK_PATH": store}
        ) as server,
        RefragClient(server.grpc_address, timeout_seconds=LONGEST_ANSWER_SECONDS) as client,
    ):
        print(f"Serving on {server.grpc_address} (gRPC) and {server.http_address} (HTTP).")
        seconds = index(server.grpc_address, passages)
        warm_up(client, Question("What is this about?", [], passages[:NUM_PASSAGES]))
        pairs = [ask_twice(client, question, number) for number, question in enumerate(asked, start=1)]
    return {**summarise(pairs, config), "num_passages": len(passages), "index_seconds": round(seconds, 1)}


def read_questions(path: Path, corpus: Corpus) -> Iterator[Question]:
    """Yield the questions of a file of JSON lines, {"question": …, "answers": […]}, with passages of the corpus.

    Raise InvalidRequest for a line of another form, for a question that no passage fits, and for a file without any.
    """
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise InvalidRequest(f'{path} holds no questions; give it lines of {{"question": …, "answers": […]}}')
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            text, accepted = str(row["question"]), [str(answer) for answer in row["answers"]]
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidRequest(
                f'{path}, line {number}: {error!r}; each line has the form {{"question": …, "answers": […]}}'
            ) from None
        passages = corpus.search(text, NUM_PASSAGES)
        if not passages:
            raise InvalidRequest(f"{path}, line {number}: no passage shares a word with {text!r}; ask in their words")
        yield Question(text, accepted, passages)


def index(address: str, passages: Sequence[str]) -> float:
    """Store the vectors of all passages ahead of the questions, and return the seconds that took."""
    started, num_chunks, num_bytes = time.perf_counter(), 0, 0
    with StoreClient(address) as store:
        for first in range(0, len(passages), INDEXED_AT_ONCE):
            report = store.index(passages[first : first + INDEXED_AT_ONCE])
            num_chunks += report.num_chunks
            num_bytes += report.num_bytes
    seconds = time.perf_counter() - started
    print(
        f"Indexed {len(passages)} passages in {seconds:.0f} s: "
        f"{num_chunks} chunks, {num_bytes / 1e6:.1f} MB of vectors."
    )
    return seconds


def warm_up(client: RefragClient, question: Question) -> None:
    """Ask one uncounted question each way, since the first use of a shape allocates memory that later ones reuse.

    Not over the passages of a counted one, whose prompt would then be in the decoder's cache.
    """
    for expand_fraction in (None, 1.0):
        options = options_of(expand_fraction, max_tokens=2)
        client.generate(question.text, question.passages, **options)


def ask_twice(client: RefragClient, question: Question, number: int) -> Pair:
    print(f"\n{number}. {question.text}   ({len(question.passages)} passages)")
    print(f"   {'expected':{LABEL_WIDTH}} {' or '.join(question.accepted)}")
    compressed = show(client, "compressed", question, expand_fraction=None)
    plain = show(client, "plain", question, expand_fraction=1.0)
    return Pair(question, compressed, plain)


def show(client: RefragClient, label: str, question: Question, expand_fraction: float | None) -> Answer:
    """Print one answer as it streams, then what it cost."""
    print(f"   {label:{LABEL_WIDTH}} ", end="", flush=True)
    options = options_of(expand_fraction, MAX_ANSWER_TOKENS)
    with client.stream(question.text, question.passages, **options) as stream:
        for piece in stream:
            print(piece.text.replace("\n", " "), end="", flush=True)
    answer = stream.answer
    mark = "right" if question.is_right(answer.text) else "wrong"
    figures = answer.statistics
    print(
        f"   [{mark}; {figures.context_tokens} context tokens in {figures.prompt_slots} prompt slots, "
        f"{figures.num_expanded_chunks} of {figures.num_chunks} chunks expanded, "
        f"first token after {1000 * (answer.ttft_seconds or 0):.0f} ms]"
    )
    return answer


def options_of(expand_fraction: float | None, max_tokens: int) -> GenerateOptions:
    return {
        "expand_fraction": expand_fraction,
        "max_tokens": max_tokens,
        "deadline_ms": 1000 * LONGEST_ANSWER_SECONDS,
    }


def summarise(pairs: list[Pair], config: RefragConfig) -> dict[str, Any]:
    compressed, plain = [pair.compressed for pair in pairs], [pair.plain for pair in pairs]
    return {
        "num_questions": len(pairs),
        "num_right_compressed": sum(pair.question.is_right(pair.compressed.text) for pair in pairs),
        "num_right_plain": sum(pair.question.is_right(pair.plain.text) for pair in pairs),
        "agreement": round(statistics.mean(pair.agree for pair in pairs), 3),
        "context_tokens": statistics.median(answer.statistics.context_tokens for answer in compressed),
        "prompt_slots_compressed": statistics.median(answer.statistics.prompt_slots for answer in compressed),
        "prompt_slots_plain": statistics.median(answer.statistics.prompt_slots for answer in plain),
        "ttft_ms_compressed": median_ttft_ms(compressed),
        "ttft_ms_plain": median_ttft_ms(plain),
        "expand_fraction": config.expand_fraction,
        "chunk_size": config.chunk_size,
    }


def markdown_table(summary: dict[str, Any]) -> str:
    """Return the counts and medians as a Markdown table with machine, commit and command."""
    about = f"{summary['num_questions']} questions over {summary['num_passages']} passages, medians"
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
    parser.add_argument("--corpus", type=Path, help="a folder of text files in place of Python's documentation")
    parser.add_argument("--questions", type=Path, default=QUESTIONS)
    parser.add_argument("--output", type=Path, help="also write the last line, with machine and commit, to this file")
    arguments = parser.parse_args()
    try:
        passages = read_documentation() if arguments.corpus is None else read_folder(arguments.corpus)
        summary = run_demo(arguments.repository, passages, arguments.questions)
    except (RefragError, ClientError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    if arguments.output:
        arguments.output.write_text(json.dumps({**summary, **describe_environment()}, indent=2) + "\n")
    print(f"\n{json.dumps(summary)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
