"""Measures what OpenAI's endpoint costs: callers over HTTP against the same callers over gRPC, on the real server.

    python -m perf.openai --output perf/results/openai.json

Sixteen callers ask one question after another over the same passages, whose vectors are stored, for answers of the same
length, with and without streaming. The two ways take turns; each turn is so many requests of each caller. The endpoint
runs in a process of its own, as it does when it is deployed. `requests/s` is the number of requests over the time from
the first one sent to the last one answered; the ratio is the median over the turns.

The last line of the output is the report as one JSON object.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from perf.corpus import QUESTION, Corpus
from perf.deployment import deploy, serve
from perf.results import Report, describe_run, emit
from refrag.reporting import table
from refrag_client import AsyncRefragClient, StoreClient

WINDOW = 4096
EXPAND_FRACTION = 0.0
Asking = Callable[[], Awaitable[None]]


def measure(options: argparse.Namespace) -> list[Report]:
    with tempfile.TemporaryDirectory() as folder:
        repository = deploy(options.checkpoint, Path(folder), WINDOW)
        corpus = Corpus(repository)
        passages = [corpus.draw_passage() for _ in range(options.passages)]
        with (
            serve(repository, disk_path=f"{folder}/store") as server,
            StoreClient(server.grpc_address) as store,
            endpoint(server.grpc_address) as url,
        ):
            store.index(passages)
            return asyncio.run(_compare(server.grpc_address, url, passages, options))


@contextmanager
def endpoint(grpc_address: str, *options: str) -> Iterator[str]:
    """Run `refrag openai` with these options in a process of its own; yield its base URL."""
    program = [sys.executable, "-m", "refrag_client.cli.main", "openai", "--port", "0", "--url", grpc_address, *options]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stdout or ())
            yield next(line.split()[1] for line in lines if line.startswith("openai "))
        finally:
            process.terminate()


async def _compare(grpc_address: str, url: str, passages: Sequence[str], options: argparse.Namespace) -> list[Report]:
    async with AsyncRefragClient(grpc_address) as client, AsyncOpenAI(base_url=url, api_key="none") as api:
        return [
            await _take_turns(
                {
                    "gRPC": over_grpc(client, passages, options.num_tokens, is_stream),
                    "OpenAI": over_http(api, passages, options.num_tokens, is_stream),
                },
                is_stream,
                options,
            )
            for is_stream in (False, True)
        ]


def over_grpc(client: AsyncRefragClient, passages: Sequence[str], num_tokens: int, is_stream: bool) -> Asking:
    async def ask() -> None:
        await client.generate(
            QUESTION,
            passages,
            expand_fraction=EXPAND_FRACTION,
            max_tokens=num_tokens,
            min_tokens=num_tokens,
            stream=is_stream,
        )

    return ask


def over_http(api: AsyncOpenAI, passages: Sequence[str], num_tokens: int, is_stream: bool) -> Asking:
    body: dict[str, Any] = {
        "documents": list(passages),
        "min_tokens": num_tokens,
        "refrag": {"expand_fraction": EXPAND_FRACTION},
    }

    async def ask() -> None:
        answer: Any = await api.chat.completions.create(
            model="refrag",
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=num_tokens,
            stream=is_stream,
            extra_body=body,
        )
        if is_stream:
            async for _ in answer:
                pass

    return ask


async def _take_turns(ways: dict[str, Asking], is_stream: bool, options: argparse.Namespace) -> Report:
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.turns + 1):
        for name, ask in ways.items():
            rate = await _rate(ask, options.callers, options.requests)
            # The first turn warms up.
            if turn:
                rates[name].append(rate)
    ratios = [http / grpc for http, grpc in zip(rates["OpenAI"], rates["gRPC"], strict=True)]
    medians = {name: round(statistics.median(values), 2) for name, values in rates.items()}
    return {"is_stream": is_stream, "requests_per_second": medians, "ratio": round(statistics.median(ratios), 3)}


async def _rate(ask: Asking, num_callers: int, num_requests: int) -> float:
    async def call() -> None:
        for _ in range(num_requests):
            await ask()

    started = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(num_callers)))
    return num_callers * num_requests / (time.perf_counter() - started)


def markdown(report: Report) -> str:
    header = [f"{report['callers']} callers", "gRPC, requests/s", "OpenAI, requests/s", "ratio"]
    rows = [
        [
            "streamed" if row["is_stream"] else "whole answers",
            *(f"{row['requests_per_second'][way]:.1f}" for way in ("gRPC", "OpenAI")),
            f"{row['ratio']:.2f}",
        ]
        for row in report["rows"]
    ]
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/world"))
    parser.add_argument("--passages", type=int, default=16, help="of every request")
    parser.add_argument("--num-tokens", type=int, default=16, help="of every answer")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--requests", type=int, default=6, help="of each caller in a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    report = {
        **describe_run("perf.openai"),
        "callers": options.callers,
        "passages": options.passages,
        "answer_tokens": options.num_tokens,
        "rows": measure(options),
    }
    emit(report, markdown, options.output)


if __name__ == "__main__":
    main()
