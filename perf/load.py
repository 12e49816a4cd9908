"""Measures the ensemble under many callers at once with NVIDIA's perf_analyzer, compressed beside plain.

    make perf        or: python -m perf.load --output perf/results/load.json

Every request asks about a few passages of a pool, all of which are in the store. They are drawn anew and in random
order, as a retriever would give them, so that no prompt begins like another one. All answers have the same length. Each
level is measured compressed and plain in turn, with requests of its own, each sent once.

    throughput     requests per second: their number over the time from the first one sent to the last response
    TTFT           time from sending a request to its first response, by perf_analyzer's clock; median, 95th and 99th
                   percentile, and the number of requests
    inter-token    mean time between the responses of a request; the same percentiles over requests
    speed-up       throughput of compressed over plain, at a fixed number of requests at a time
    models         mean milliseconds that a request waited for each model of the ensemble and was computed by it, from
                   Triton's statistics; for the decoder, until its first token, from its own metrics

Every decoder of `--decoders` serves the ensemble on its own, with the same passages; at each level they take turns.
At a rate of requests per second, requests are sent whether or not earlier ones are answered.
A request that fails ends the run. The last line of the output is the report as one JSON object.
"""

import argparse
import math
import random
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from perf.analyzer import Load, Timing, add_measured, run_analyzer
from perf.corpus import QUESTION, Corpus
from perf.deployment import DECODERS, LONGEST_ANSWER_SECONDS, decoder_suffix, deploy, serve_decoder
from perf.results import Report, describe_run, emit, summarise, write
from perf.stages import Reading, StageClock, compute_seconds, queue_seconds
from refrag.reporting import table
from refrag_client import StoreClient

# A context has the number of passages that holds its tokens on average. One context may have more tokens than that,
# and the question and the answer need slots, too.
SPARE_SHARE, SPARE_SLOTS = 0.25, 256
# The pool fills this many contexts: few enough to be indexed soon, enough for contexts to differ.
POOL_CONTEXTS = 8
WAYS = {"compressed": 0.0, "plain": 1.0}


@dataclass
class Callers:
    """Draws requests about passages of the pool."""

    pool: Sequence[str]
    num_passages: int
    num_tokens: int
    rng: random.Random

    def draw(self, count: int, expand_fraction: float) -> list[dict[str, Any]]:
        """Return `count` new requests in perf_analyzer's format."""
        return [
            {
                "text_input": [QUESTION],
                "passages": {"content": self.rng.sample(self.pool, self.num_passages), "shape": [self.num_passages]},
                "expand_fraction": [float(expand_fraction)],
                "max_tokens": [self.num_tokens],
                "min_tokens": [self.num_tokens],
                "deadline_ms": [1000 * LONGEST_ANSWER_SECONDS],
            }
            for _ in range(count)
        ]


def measure(report: Report, options: argparse.Namespace) -> None:
    """Add the rows to the report, which is written after each: a run takes long."""
    with tempfile.TemporaryDirectory() as folder:
        window = int((1 + SPARE_SHARE) * options.context_tokens) + SPARE_SLOTS
        repository = deploy(options.checkpoint, Path(folder), window)
        add_measured(repository)
        corpus = Corpus(repository)
        callers = make_callers(corpus, options)
        with ExitStack() as stack:
            clocks = {}
            for decoder in options.decoders:
                server = stack.enter_context(serve_decoder(decoder, repository, Path(folder)))
                clocks[decoder] = stack.enter_context(StageClock(server))
                warm(server.grpc_address, callers)
            loads = [Load(concurrency=count) for count in options.concurrency]
            loads += [Load(requests_per_second=rate) for rate in options.request_rates]
            for load in tqdm(loads, desc="load", disable=None):
                for decoder, clock in clocks.items():
                    report["rows"].append(measure_load(decoder, clock, callers, load, options))
                    write(report, options.output)


def warm(address: str, callers: Callers) -> None:
    """Put the pool into the store, and send a few requests that are not measured."""
    with StoreClient(address) as store:
        store.index(callers.pool)
    for expand_fraction in WAYS.values():
        run_analyzer(address, callers.draw(4, expand_fraction), Load(concurrency=2))


def make_callers(corpus: Corpus, options: argparse.Namespace) -> Callers:
    """Return callers with a new pool; each request has enough passages for the context's tokens on average."""
    pool = [corpus.draw_passage() for _ in range(64)]
    mean = sum(map(corpus.count_tokens, pool)) / len(pool)
    num_passages = max(1, round(options.context_tokens / mean))
    pool += [corpus.draw_passage() for _ in range(POOL_CONTEXTS * num_passages - len(pool))]
    return Callers(pool, num_passages, options.num_tokens, random.Random(0))


def measure_load(decoder: str, clock: StageClock, callers: Callers, load: Load, options: argparse.Namespace) -> Report:
    """Measure compressed and plain at one level of load, by the decoder whose server the clock reads."""
    address = clock.server.grpc_address
    count = math.ceil(options.requests * (load.concurrency or load.requests_per_second or 1))
    row: Report = {
        "load": f"{load.name}{decoder_suffix(decoder)}",
        "decoder": decoder,
        "concurrency": load.concurrency,
        "requests_per_second": load.requests_per_second,
    }
    for name, expand_fraction in WAYS.items():
        before = clock.read()
        timings = run_analyzer(address, callers.draw(count, expand_fraction), load)
        row[name] = {**describe(timings), "models_ms": model_times(before, clock.read())}
    # At a fixed rate, throughput only repeats the rate.
    if load.concurrency is not None:
        row["speedup"] = round(row["compressed"]["throughput"] / row["plain"]["throughput"], 2)
    return row


def describe(timings: Sequence[Timing]) -> Report:
    seconds = max(timing.responses[-1] for timing in timings) - min(timing.sent for timing in timings)
    return {
        "throughput": round(len(timings) / seconds, 3),
        "ttft": summarise([timing.ttft for timing in timings]),
        "inter_token": summarise([timing.inter_token for timing in timings]),
        "total": summarise([timing.total for timing in timings]),
    }


def model_times(before: Reading, after: Reading) -> Report:
    """Return the mean milliseconds that a request waited for each model and was computed by it."""
    waits, computes = queue_seconds(before, after), compute_seconds(before, after)
    return {
        model: {"queue": round(1e3 * waits[model], 2), "compute": round(1e3 * computes[model], 2)} for model in waits
    }


def markdown(report: Report) -> str:
    """Return both tables, with machine, commit and command."""
    about = f"`{report['command']}` on {report['machine']}, commit {report['commit']}."
    return "\n\n".join([load_table(report), model_table(report), about])


def load_table(report: Report) -> str:
    header = [
        f"{report['context_tokens']:,} context tokens",
        "compressed, requests/s",
        "plain, requests/s",
        "speed-up",
        "TTFT compressed, p50 / p99",
        "TTFT plain, p50 / p99",
        "between tokens, compressed",
        "plain",
    ]
    return table(header, [_cells(row) for row in report["rows"]])


def _cells(row: Report) -> list[str]:
    ways = [row[name] for name in WAYS]
    return [
        row["load"],
        *(f"{way['throughput']:.2f}" for way in ways),
        f"{row['speedup']:.1f}×" if "speedup" in row else "",
        *(f"{way['ttft']['p50_ms']:,.0f} / {way['ttft']['p99_ms']:,.0f} ms" for way in ways),
        *(f"{way['inter_token']['p50_ms']:.0f} ms" for way in ways),
    ]


def model_table(report: Report) -> str:
    """Return a table of the milliseconds that a compressed request waits for each model and is computed by it."""
    rows = [(row["load"], row["compressed"]["models_ms"]) for row in report["rows"]]
    return table(
        ["queue + compute, ms", *rows[0][1]],
        [[name, *(f"{ms['queue']:.1f} + {ms['compute']:.1f}" for ms in models.values())] for name, models in rows],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/world"))
    parser.add_argument("--context-tokens", type=int, default=4096)
    parser.add_argument("--decoders", nargs="+", choices=list(DECODERS), default=["torch"])
    parser.add_argument("--num-tokens", type=int, default=16, help="tokens of every answer")
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--request-rates", type=float, nargs="*", default=[], help="requests per second")
    parser.add_argument("--requests", type=int, default=6, help="of each caller; at a rate, seconds of it")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    report: Report = {
        **describe_run("perf.load"),
        "context_tokens": options.context_tokens,
        "answer_tokens": options.num_tokens,
        "rows": [],
    }
    measure(report, options)
    emit(report, markdown, options.output)


if __name__ == "__main__":
    main()
