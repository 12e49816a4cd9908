"""Measures what the server costs while idle, and how its cost grows with passages, callers and served requests.

    make perf-full        or: python -m perf.scale --output perf/results/scale.json

    start        seconds from launching the server to all models ready
    memory       MiB of the server and the processes of its models; pages that they share are divided among them
                 (proportional set size), so the sum is what they take from the machine
    passages     TTFT of one request at a time over each number of passages, the store warm and nothing expanded:
                 median, and milliseconds per prompt slot, which stay level where time grows in proportion to the slots
    callers      requests per second and TTFT with each number of callers at a time, about a pool of stored passages, by
                 perf_analyzer; and the memory afterwards
    requests     memory before and after many requests of mixed length about a pool of passages; the server knows all
                 the passages beforehand

A request that fails ends the run. The last line of the output is the report as one JSON object.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from perf.analyzer import Load, add_measured, run_analyzer
from perf.corpus import Corpus
from perf.deployment import ask, deploy, serve
from perf.load import Callers, describe
from perf.memory import memory_mib
from perf.results import Report, describe_run, emit, summarise
from refrag.embedded import EmbeddedServer
from refrag.reporting import table
from refrag_client import RefragClient, StoreClient

WINDOW = 8192
# The pool's passages have several chunks each; with one chunk each, passages would be no more than chunks.
POOL_SIZE = 1024
ANSWER_TOKENS = 8
# Share of the requests that is sent beforehand, so that caches fill and allocators grow before memory is measured.
FILLING_SHARE = 0.2
NUM_CALLERS = 8
MOST_PASSAGES = 8


def measure(options: argparse.Namespace) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        repository = deploy(options.checkpoint, Path(folder), WINDOW)
        add_measured(repository)
        corpus = Corpus(repository)
        pool = [corpus.draw_passage() for _ in range(POOL_SIZE)]
        start = time.perf_counter()
        with serve(repository, disk_path=f"{folder}/store") as server, RefragClient(server.grpc_address) as client:
            report: Report = {"start_s": round(time.perf_counter() - start, 1), "idle_mib": memory_mib(server)}
            with StoreClient(server.grpc_address) as store:
                store.index(pool)
            rng = random.Random(0)
            report["passages"] = [
                measure_passages(client, pool, count, options.rounds, rng)
                for count in tqdm(options.passages, desc="passages", disable=None)
            ]
            report["callers"] = [
                measure_callers(server, pool, count, options, rng)
                for count in tqdm(options.callers, desc="callers", disable=None)
            ]
            report["requests"] = measure_growth(server, client, pool, options.requests, rng)
    return report


def measure_passages(client: RefragClient, pool: Sequence[str], count: int, rounds: int, rng: random.Random) -> Report:
    answers = [ask(client, rng.sample(pool, count), 0.0) for _ in range(rounds + 1)][1:]
    seconds = [answer.ttft_seconds or 0.0 for answer in answers]
    slots = [answer.statistics.prompt_slots for answer in answers]
    return {
        "passages": count,
        "context_tokens": round(statistics.mean(answer.statistics.context_tokens for answer in answers)),
        "prompt_slots": round(statistics.mean(slots)),
        "ttft": summarise(seconds),
        "ms_per_slot": round(
            1e3 * statistics.median(time / num_slots for time, num_slots in zip(seconds, slots, strict=True)), 3
        ),
    }


def measure_callers(
    server: EmbeddedServer, pool: Sequence[str], count: int, options: argparse.Namespace, rng: random.Random
) -> Report:
    callers = Callers(pool, MOST_PASSAGES, ANSWER_TOKENS, rng)
    requests = callers.draw(options.requests_per_caller * count, 0.0)
    timings = run_analyzer(server.grpc_address, requests, Load(concurrency=count))
    return {"callers": count, **describe(timings), "memory_mib": memory_mib(server)}


def measure_growth(
    server: EmbeddedServer, client: RefragClient, pool: Sequence[str], count: int, rng: random.Random
) -> Report:
    """Measure the memory after `count` requests against that before them, when some more have filled the caches."""
    num_filling = int(FILLING_SHARE * count)
    _send(client, pool, num_filling, rng)
    before = memory_mib(server)
    start = time.perf_counter()
    _send(client, pool, count, rng)
    seconds, after = time.perf_counter() - start, memory_mib(server)
    return {
        "before": num_filling,
        "requests": count,
        "throughput": round(count / seconds, 1),
        "before_mib": before,
        "after_mib": after,
        "growth": round(after / before - 1, 4),
    }


def _send(client: RefragClient, pool: Sequence[str], count: int, rng: random.Random) -> None:
    """Send requests of mixed length from several callers; some expand a tenth of their chunks."""
    passages = [rng.sample(pool, rng.randint(1, MOST_PASSAGES)) for _ in range(count)]
    fractions = [rng.choice((0.0, 0.1)) for _ in range(count)]
    with ThreadPoolExecutor(NUM_CALLERS) as callers:
        answers = callers.map(lambda own, fraction: ask(client, own, fraction, 2), passages, fractions)
        for _ in tqdm(answers, total=count, desc="requests", disable=None):
            pass


def markdown(report: Report) -> str:
    """Return tables and lines, with machine, commit and command."""
    growth = report["requests"]
    lines = [
        f"Ready {report['start_s']:.0f} s after the start, {report['idle_mib']:,.0f} MiB while idle. After "
        f"{growth['requests']:,} more requests at {growth['throughput']:.0f} a second {growth['after_mib']:,.0f} MiB, "
        f"{growth['before_mib']:,.0f} MiB before them: {100 * growth['growth']:+.1f}%.",
        f"`{report['command']}` on {report['machine']}, commit {report['commit']}.",
    ]
    return "\n\n".join([passages_table(report), callers_table(report), "\n".join(lines)])


def passages_table(report: Report) -> str:
    header = ["passages", "context tokens", "slots", "first token", "for each slot"]
    return table(
        header,
        [
            [
                row["passages"],
                f"{row['context_tokens']:,}",
                f"{row['prompt_slots']:,}",
                f"{row['ttft']['p50_ms']:.0f} ms",
                f"{row['ms_per_slot']:.2f} ms",
            ]
            for row in report["passages"]
        ],
        num_text=0,
    )


def callers_table(report: Report) -> str:
    header = ["callers", "requests/s", "TTFT, p50 / p99", "memory"]
    return table(
        header,
        [
            [
                row["callers"],
                f"{row['throughput']:.1f}",
                f"{row['ttft']['p50_ms']:.0f} / {row['ttft']['p99_ms']:.0f} ms",
                f"{row['memory_mib']:,.0f} MiB",
            ]
            for row in report["callers"]
        ],
        num_text=0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/world"))
    parser.add_argument("--passages", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests-per-caller", type=int, default=20)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    report = {**describe_run("perf.scale"), **measure(options)}
    emit(report, markdown, options.output)


if __name__ == "__main__":
    main()
