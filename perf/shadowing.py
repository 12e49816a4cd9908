"""Measures what shadowing costs those who ask: callers with a share of their requests shadowed, and without.

    python -m perf.shadowing --checkpoint checkpoints/smollm2 --output perf/results/smollm2/shadowing.json

Sixteen callers ask one question after another, each about passages drawn anew from a pool whose vectors are stored, for
answers of the same length. Three loads take turns on the real server, and each begins when the decoder is idle:

    none           nobody is shadowed
    shadowed       requests drawn with the chance `--shadow-fraction` are, in the background
    more load      nobody is, but callers of drawn requests ask again for the plain answer, like everybody else

    requests/s     compressed answers over the time from the first request to the last answer; what was asked again for
                   plain is not counted
    first token    at the caller, of the compressed answers: median, 95th and 99th percentile
    against none   requests per second of the load over those of `none`: median of the ratios within a turn
    shadows        comparisons that the server made of the requests drawn, and those that it let go, being too busy

The last line of the output is the report as one JSON object.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
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
COMPARED, SKIPPED = "refrag_shadow_agreement_count", "refrag_shadow_skipped"
LONGEST_SECONDS = 600.0


@dataclass
class Turn:
    """Requests per second under one load, seconds to first tokens, and comparisons made and let go."""

    rate: float
    ttft: list[float]
    num_compared: int
    num_skipped: int


@dataclass
class Callers:
    """Callers who draw their passages from a pool, and the requests that are shadowed or asked again."""

    server: EmbeddedServer
    client: AsyncRefragClient
    pool: Sequence[str]
    options: argparse.Namespace
    rng: random.Random
    ttft: list[float] = field(default_factory=list)
    num_drawn: int = 0

    async def take_turn(self, load: str) -> Turn:
        """Let all callers ask at once until each has asked its share, then wait until the server is idle."""
        before, self.ttft, self.num_drawn = self._count_shadows(), [], 0

        async def call() -> None:
            for _ in range(self.options.requests):
                await self._ask(load)

        began = time.perf_counter()
        await asyncio.gather(*(call() for _ in range(self.options.callers)))
        rate = len(self.ttft) / (time.perf_counter() - began)
        awaited = self.num_drawn if load == "shadowed" else 0
        compared, skipped = await self._wait_for_shadows(before, awaited)
        return Turn(rate, self.ttft, compared, skipped)

    async def _ask(self, load: str) -> None:
        passages = self.rng.sample(list(self.pool), self.options.passages)
        is_drawn = self.rng.random() < self.options.shadow_fraction
        self.num_drawn += is_drawn
        shadow_fraction = float(is_drawn and load == "shadowed")
        answer = await self._generate(passages, self.options.expand_fraction, shadow_fraction)
        assert answer.ttft_seconds is not None
        self.ttft.append(answer.ttft_seconds)
        if is_drawn and load == "more load":
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

    async def _wait_for_shadows(self, before: tuple[int, int], awaited: int) -> tuple[int, int]:
        """Return how many comparisons have been made and let go since, once all that are awaited have come."""
        deadline = time.monotonic() + LONGEST_SECONDS
        while True:
            compared, skipped = (now - then for now, then in zip(self._count_shadows(), before, strict=True))
            if compared + skipped >= awaited:
                return compared, skipped
            assert time.monotonic() < deadline, f"{compared + skipped} of {awaited} shadows have come"
            await asyncio.sleep(1)

    def _count_shadows(self) -> tuple[int, int]:
        compared, skipped = (sum(read_metric(self.server, name)) for name in (COMPARED, SKIPPED))
        return round(compared), round(skipped)


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
        callers = Callers(server, client, pool, options, random.Random(0))
        for number in range(options.turns + 1):
            for load in LOADS:
                turn = await callers.take_turn(load)
                # The first turn warms up.
                turns[load] += [turn] if number else []
    rates = {load: [turn.rate for turn in series] for load, series in turns.items()}
    return [
        {
            "load": load,
            "requests_per_second": round(statistics.median(rates[load]), 2),
            "against_none": median_ratio(rates[load], rates["none"]),
            "ttft": summarise([seconds for turn in series for seconds in turn.ttft]),
            "num_compared": sum(turn.num_compared for turn in series),
            "num_skipped": sum(turn.num_skipped for turn in series),
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
            row["num_compared"],
            row["num_skipped"],
        ]
        for row in report["rows"]
    ]
    return table(["load", "requests/s", "against none", "first token", "p95", "p99", "shadows", "let go"], rows)


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
