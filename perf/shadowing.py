"""Measures what shadowing costs those who ask: callers with a share of their requests shadowed, and without.

    python -m perf.shadowing --checkpoint checkpoints/smollm2 --output perf/results/smollm2/shadowing.json

Sixteen callers ask one question after another, each about passages drawn anew from a pool whose vectors are stored, for
answers of the same length. Three loads take turns on the real server, and each begins when the decoder is idle:

    none           nobody is shadowed
    shadowed       `shadow_fraction` of the requests are, in the background
    more load      nobody is, but with that chance a caller asks again for the plain answer, like everybody else

    requests/s     compressed answers over the time from the first request to the last answer; what was asked again for
                   plain is not counted
    first token    at the caller, of the compressed answers: median, 95th and 99th percentile
    against none   requests per second of the load over those of `none`: median of the ratios within a turn
    shadows        comparisons that the server made, by the end of the turn and until it was idle

The last line of the output is the report as one JSON object.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perf.corpus import QUESTION, Corpus
from perf.deployment import deploy, serve
from perf.metrics import read_metric
from perf.results import Report, describe_run, emit, median_ratio, summarise
from refrag.embedded import EmbeddedServer
from refrag.reporting import table
from refrag_client import Answer, AsyncRefragClient, StoreClient

LOADS = ("none", "shadowed", "more load")
WINDOW = 4096
POOL_CONTEXTS = 8
COUNTED = "refrag_shadow_agreement_count"
# Metrics are told once a second; a decoder is idle if its shadows stand still for so long.
IDLE_SECONDS = 3.0


@dataclass
class Turn:
    """Requests per second under one load, seconds to first tokens, and comparisons made until the server was idle."""

    rate: float
    ttft: list[float]
    num_shadows: int


@dataclass
class Callers:
    """Callers who draw their passages from a pool, and whether they ask again."""

    client: AsyncRefragClient
    pool: Sequence[str]
    options: argparse.Namespace
    rng: random.Random
    ttft: list[float] = field(default_factory=list)

    async def ask(self, load: str) -> None:
        passages = self.rng.sample(list(self.pool), self.options.passages)
        fraction = self.options.shadow_fraction
        answer = await self._generate(passages, self.options.expand_fraction, fraction if load == "shadowed" else 0.0)
        assert answer.ttft_seconds is not None
        self.ttft.append(answer.ttft_seconds)
        if load == "more load" and self.rng.random() < fraction:
            await self._generate(passages, 1.0, 0.0)

    async def _generate(self, passages: Sequence[str], expand_fraction: float, shadow_fraction: float) -> Answer:
        num_tokens = self.options.num_tokens
        return await self.client.generate(
            QUESTION,
            passages,
            expand_fraction=expand_fraction,
            shadow_fraction=shadow_fraction,
            max_tokens=num_tokens,
            min_tokens=num_tokens,
        )

    async def take_turn(self, load: str, is_over: Callable[[], int]) -> Turn:
        """Let all callers ask at once until each has asked its share, then wait until the server is idle."""
        before, self.ttft = is_over(), []

        async def call() -> None:
            for _ in range(self.options.requests):
                await self.ask(load)

        began = time.perf_counter()
        await asyncio.gather(*(call() for _ in range(self.options.callers)))
        seconds = time.perf_counter() - began
        return Turn(len(self.ttft) / seconds, self.ttft, await asyncio.to_thread(is_over) - before)


def count_when_idle(server: EmbeddedServer) -> int:
    """Return the comparisons made so far, once there are no more of them."""
    count = -1
    while (latest := round(sum(read_metric(server, COUNTED)))) != count:
        count = latest
        time.sleep(IDLE_SECONDS)
    return count


def measure(options: argparse.Namespace) -> list[Report]:
    with tempfile.TemporaryDirectory() as folder:
        repository = deploy(options.checkpoint, Path(folder), WINDOW)
        corpus = Corpus(repository)
        pool = [corpus.draw_passage() for _ in range(POOL_CONTEXTS * options.passages)]
        with serve(repository, disk_path=f"{folder}/store") as server, StoreClient(server.grpc_address) as store:
            store.index(pool)
            return asyncio.run(_take_turns(server, pool, options))


async def _take_turns(server: EmbeddedServer, pool: Sequence[str], options: argparse.Namespace) -> list[Report]:
    turns: dict[str, list[Turn]] = {load: [] for load in LOADS}
    async with AsyncRefragClient(server.grpc_address, timeout_seconds=600) as client:
        callers = Callers(client, pool, options, random.Random(0))
        for number in range(options.turns + 1):
            for load in LOADS:
                turn = await callers.take_turn(load, lambda: count_when_idle(server))
                # The first turn warms up.
                turns[load] += [turn] if number else []
    rates = {load: [turn.rate for turn in series] for load, series in turns.items()}
    return [
        {
            "load": load,
            "requests_per_second": round(statistics.median(rates[load]), 2),
            "against_none": median_ratio(rates[load], rates["none"]),
            "ttft": summarise([seconds for turn in series for seconds in turn.ttft]),
            "shadows": sum(turn.num_shadows for turn in series),
        }
        for load, series in turns.items()
    ]


def markdown(report: Report) -> str:
    rows = [
        [
            row["load"],
            f"{row['requests_per_second']:.1f}",
            f"{row['against_none']:.2f}×",
            *(f"{row['ttft'][name]:,.0f} ms" for name in ("p50_ms", "p95_ms", "p99_ms")),
            row["shadows"],
        ]
        for row in report["rows"]
    ]
    return table(["load", "requests/s", "against none", "first token", "p95", "p99", "shadows"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/smollm2"))
    parser.add_argument("--shadow-fraction", type=float, default=0.1)
    parser.add_argument("--expand-fraction", type=float, default=0.1)
    parser.add_argument("--passages", type=int, default=8, help="of every request")
    parser.add_argument("--num-tokens", type=int, default=16, help="of every answer")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--requests", type=int, default=5, help="of each caller in a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    report = {
        **describe_run("perf.shadowing"),
        "callers": options.callers,
        "shadow_fraction": options.shadow_fraction,
        "rows": measure(options),
    }
    emit(report, markdown, options.output)


if __name__ == "__main__":
    main()
