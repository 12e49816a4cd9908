"""Measures collections on the real server: indexing, searching, and where the time of an answer over one goes.

    make bench-retrieval        or: python -m perf.retrieval --output perf/results/retrieval.json

    index       passages per second of `refrag index --collection` into an empty collection, vectors and tokens of their
                chunks included; bytes per passage of the collection and of the store of chunk vectors
    search      time of a search from the client, over gRPC, with 1 and 8 callers, by words, by meaning, and both
    breakdown   the client's time to first token through `refrag_rag`, plain and compressed, by the number of passages;
                its stages by the server's own clocks (perf/stages.py): retrieve is the model `retriever`, assemble
                preprocessing, compress chunk_encoder, sense expansion_policy, project projector, and prefill the
                decoder from a request's admission to its first token; the rest is client, gRPC, and between models

Passages are those of --corpus, JSON lines; without one, sentences of Python's documentation in random order. Questions
are stretches of passages, one passage each. The last line of the output is the report as one JSON object.
"""

import argparse
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from examples.documentation import read_documentation
from perf.deployment import deploy, serve
from perf.results import Report, describe_run, emit, median_ratio, summarise, write
from perf.stages import Reading, StageClock
from refrag.embedded import EmbeddedServer
from refrag.reporting import table
from refrag_client import CollectionClient, RefragClient
from refrag_client.passages import read_passages

COLLECTION = "measured"
# By the model or clock that tells them.
STAGES = {
    "retrieve": "retriever",
    "assemble": "preprocessing",
    "compress": "chunk_encoder",
    "sense": "expansion_policy",
    "project": "projector",
}
PHASES = ("queue", "compute_input", "compute_infer", "compute_output")
QUESTION_WORDS = 12
WAYS = {"plain": 1.0, "compressed": 0.1}


def draw_passages(corpus: Path | None, count: int, num_words: int, rng: random.Random) -> list[str]:
    """Return `count` passages of the corpus, or of sentences of the documentation, `num_words` or somewhat more each.

    A corpus that has fewer gives all of them.
    """
    if corpus is not None:
        return list(dict.fromkeys(read_passages(str(corpus))))[:count]
    sentences = [each for passage in read_documentation() for each in passage.replace("\n", " ").split(". ") if each]
    return [_draw_passage(sentences, num_words, rng) for _ in range(count)]


def _draw_passage(sentences: Sequence[str], num_words: int, rng: random.Random) -> str:
    drawn: list[str] = []
    while sum(len(each.split()) for each in drawn) < num_words:
        drawn.append(rng.choice(sentences))
    return ". ".join(drawn)


def draw_questions(passages: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """Return stretches of words, each from a passage drawn at random."""
    return [_draw_stretch(rng.choice(passages).split(), rng) for _ in range(count)]


def _draw_stretch(words: Sequence[str], rng: random.Random) -> str:
    start = rng.randrange(max(1, len(words) - QUESTION_WORDS))
    return " ".join(words[start : start + QUESTION_WORDS])


def measure_index(server: EmbeddedServer, passages: Sequence[str], folder: Path) -> Report:
    documents = ({"id": str(number), "text": text} for number, text in enumerate(passages))
    told = fill_collection(server, documents, folder / "corpus.jsonl")
    return {
        "num_passages": told["num_passages"],
        "num_chunks": told["num_chunks"],
        "seconds": told["seconds"],
        "passages_per_second": told["passages_per_second"],
        "collection_bytes_per_passage": _size(folder / "collections") // told["num_passages"],
        "store_bytes_per_passage": _size(folder / "store") // told["num_passages"],
    }


def fill_collection(server: EmbeddedServer, documents: Iterable[Mapping[str, str]], corpus: Path) -> Report:
    """Index the documents, each with id, text and perhaps title, by `refrag index`; return its report.

    corpus: where the file that it reads is written.
    """
    corpus.write_text("".join(json.dumps(document) + "\n" for document in documents))
    command = [sys.executable, "-m", "refrag_client.cli.main", "index", str(corpus), "--collection", COLLECTION]
    command += ["--json", "--url", server.grpc_address]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report: Report = json.loads(done.stdout)
    return report


def _size(folder: Path) -> int:
    """Return the bytes that the files below a folder take on disk; LMDB's files are sparse."""
    return sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file())


def measure_search(server: EmbeddedServer, questions: Sequence[str], num_passages: int) -> list[Report]:
    rows = []
    with CollectionClient(server.grpc_address) as client:
        modes = ["text"] if not client.list()[0].encoder else ["text", "dense", "hybrid"]
        for mode, callers in itertools.product(modes, (1, 8)):

            def search(question: str, mode: str = mode) -> float:
                began = time.perf_counter()
                client.search(COLLECTION, question, num_passages, search_mode=mode)
                return time.perf_counter() - began

            with ThreadPoolExecutor(callers) as pool:
                # The first ones open the tables.
                list(pool.map(search, questions[: 2 * callers]))
                began = time.perf_counter()
                seconds = list(pool.map(search, questions))
                rate = len(seconds) / (time.perf_counter() - began)
            rows.append({"mode": mode, "callers": callers, **summarise(seconds), "searches_per_second": round(rate, 1)})
    return rows


def measure_breakdown(server: EmbeddedServer, questions: Iterator[str], options: argparse.Namespace) -> list[Report]:
    rows = []
    with RefragClient(server.grpc_address, timeout_seconds=600) as client, StageClock(server) as clock:
        for count in tqdm(options.breakdown, desc="passages", disable=None):
            asked = ["compressed"] if count > options.longest_plain else list(WAYS)
            ttft: dict[str, list[float]] = {way: [] for way in asked}
            for number, way in itertools.product(range(options.rounds + 1), asked):
                answer = _ask(client, next(questions), count, way, options)
                # The first round warms up.
                ttft[way] += [answer] if number else []
            for way in asked:
                before = clock.read()
                mean = statistics.mean(
                    _ask(client, next(questions), count, way, options) for _ in range(options.stage_requests)
                )
                stages = stage_seconds(before, clock.read(), mean, options.stage_requests)
                rows.append(
                    {
                        "num_passages": count,
                        "way": way,
                        "ttft": summarise(ttft[way]),
                        "speedup": median_ratio(ttft["plain"], ttft[way]) if "plain" in ttft else None,
                        "stages_ms": {name: round(1e3 * seconds, 2) for name, seconds in stages.items()},
                    }
                )
    return rows


def _ask(client: RefragClient, question: str, count: int, way: str, options: argparse.Namespace) -> float:
    """Return the time to first token; raise if not all passages were used."""
    answer = client.generate(
        question,
        collection=COLLECTION,
        num_passages=count,
        expand_fraction=WAYS[way],
        max_tokens=1,
        min_tokens=1,
    )
    assert len(answer.passages) == count, f"{len(answer.passages)} of {count} passages were found"
    assert answer.ttft_seconds is not None
    return answer.ttft_seconds


def stage_seconds(before: Reading, after: Reading, ttft: float, count: int) -> dict[str, float]:
    """Return a request's mean seconds in each stage; `ttft` is the client's mean time to first token, in seconds."""
    seconds = {
        stage: sum(after.models[model][phase] - before.models[model][phase] for phase in PHASES) / count
        for stage, model in STAGES.items()
    }
    first_token, admission = (after.engine[name][0] - before.engine[name][0] for name in ("ttft", "queue"))
    seconds["prefill"] = (first_token - admission) / count
    return {**seconds, "rest": ttft - sum(seconds.values())}


def markdown(report: Report) -> str:
    """Return three tables, with machine, commit and command."""
    about = f"`{report['command']}` on {report['machine']}, commit {report['commit']}."
    return "\n\n".join([index_line(report), search_table(report), breakdown_table(report), about])


def index_line(report: Report) -> str:
    index = report["index"]
    return (
        f"{index['num_passages']:,} passages of {index['num_chunks'] / index['num_passages']:.1f} chunks: "
        f"{index['passages_per_second']:,.0f} passages/s; {index['collection_bytes_per_passage']:,} bytes a passage in "
        f"the collection, {index['store_bytes_per_passage']:,} in the store of chunk vectors."
    )


def search_table(report: Report) -> str:
    rows = [
        [
            row["mode"],
            row["callers"],
            *(f"{row[name]:.0f} ms" for name in ("p50_ms", "p99_ms")),
            row["searches_per_second"],
        ]
        for row in report["search"]
    ]
    return table(["search", "callers", "p50", "p99", "searches/s"], rows)


def breakdown_table(report: Report) -> str:
    """Return the table of first tokens with their stages in milliseconds."""
    stages = list(report["breakdown"][0]["stages_ms"]) if report["breakdown"] else []
    rows = [
        [
            row["num_passages"],
            row["way"],
            f"{row['ttft']['p50_ms']:.0f}",
            f"{row['speedup']:.1f}×" if row["speedup"] is not None and row["way"] != "plain" else "",
            *(f"{row['stages_ms'][stage]:.1f}" for stage in stages),
        ]
        for row in report["breakdown"]
    ]
    return table(["passages", "way", "first token, ms", "speed-up", *stages], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/smollm2"))
    parser.add_argument(
        "--passage-encoder",
        type=Path,
        help="folder of a sentence encoder (default: the base of the checkpoint's encoder)",
    )
    parser.add_argument("--corpus", type=Path, help="JSON lines of passages (default: made of Python's documentation)")
    parser.add_argument("--num-passages", type=int, default=10_000, help="to index")
    parser.add_argument("--passage-words", type=int, default=100, help="of those that are made: whole sentences")
    parser.add_argument("--searches", type=int, default=200, help="of each mode and number of callers")
    parser.add_argument("--search-passages", type=int, default=10, help="that a search returns")
    parser.add_argument("--breakdown", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64, 128], help="passages")
    parser.add_argument("--longest-plain", type=int, default=32, help="passages; more take too long")
    parser.add_argument("--window", type=int, default=8_192, help="slots of the decoder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stage-requests", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    report: Report = describe_run("perf.retrieval")
    rng = random.Random(0)
    passages = draw_passages(options.corpus, options.num_passages, options.passage_words, rng)
    questions = draw_questions(passages, options.searches, rng)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repository = deploy(
            options.checkpoint, folder, options.window, has_retrieval=True, passage_encoder=options.passage_encoder
        )
        with serve(repository, folder / "collections", disk_path=folder / "store") as server:
            parts: dict[str, Callable[[], Any]] = {
                "index": lambda: measure_index(server, passages, folder),
                "search": lambda: measure_search(server, questions, options.search_passages),
                "breakdown": lambda: measure_breakdown(server, itertools.cycle(questions), options),
            }
            for part, measure in parts.items():
                report[part] = measure()
                # Each as it comes: a large collection takes an hour to index.
                write(report, options.output)
    emit(report, markdown, options.output)


if __name__ == "__main__":
    main()
