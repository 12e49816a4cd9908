"""Measures the engine against Hugging Face's `generate`, one by one and padded, and transformers' continuous batching.

    make bench-engine        or: python -m perf.engine --output perf/results/engine.json

The methods take turns on the same prompts in one run, so ratios hold on a noisy machine. The figures are

    tokens per second    all generated tokens over the time for all requests, prefill included; requests arrive
                         together, and every answer has the same length; medians over rounds, ratios within a round
    overhead             share of a decoding step's time that is spent outside the model's forward pass; attention
                         over the paged cache is inside it
    TTFT                 time to first token of a short prompt, alone and when it arrives just after a step of a long
                         prefill has begun

The last line of the output is the report as one JSON object.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from perf.decoders import Prompts, Subject, make_subject
from refrag.engine.engine import Engine
from refrag.engine.settings import EngineSettings
from refrag.machine.environment import describe_environment
from refrag.model.decoder import Decoder
from refrag.reporting import table

SHORTEST_PROMPT, LONGEST_PROMPT, LONG_PROMPT = 64, 1024, 8192
# Shares of the long prompt that are computed when the short one arrives.
ARRIVALS = (0.1, 0.3, 0.5, 0.7, 0.9)
NUM_ALONE = 9

Report = dict[str, Any]


def measure(name: str, options: argparse.Namespace) -> Report:
    """Measure one decoder: throughput, overhead and, where its window is wide enough, time to first token."""
    subject, rng = make_subject(name, options.kv_cache_mib), random.Random(0)
    for method in subject.methods.values():
        method(draw_prompts(subject, 2, rng), 4)
    throughput = [
        measure_throughput(subject, concurrency, options, rng)
        for concurrency in tqdm(options.concurrency, desc=f"throughput, {name}", disable=None)
    ]
    report: Report = {
        "num_parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
        "throughput": throughput,
        "overhead": [measure_overhead(subject, concurrency, options, rng) for concurrency in options.concurrency],
    }
    if subject.window > LONG_PROMPT:
        report["ttft"] = measure_ttft(subject, rng)
    return report


def draw_prompts(subject: Subject, count: int, rng: random.Random) -> Prompts:
    return [subject.draw_prompt(rng.randint(SHORTEST_PROMPT, LONGEST_PROMPT), rng) for _ in range(count)]


def measure_throughput(subject: Subject, concurrency: int, options: argparse.Namespace, rng: random.Random) -> Report:
    """Measure each method's tokens per second, and how many times as fast as each other method the engine was."""
    rates: dict[str, list[float]] = {name: [] for name in subject.methods}
    # Few requests are soon answered, and short times are noisy, so they get more rounds.
    for _ in range(options.rounds * max(1, 4 // concurrency)):
        prompts = draw_prompts(subject, concurrency, rng)
        for name, method in subject.methods.items():
            rates[name].append(concurrency * options.num_tokens / method(prompts, options.num_tokens))
    own = rates["engine"]
    return {
        "concurrency": concurrency,
        "tokens_per_second": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "engine_against": {
            name: round(statistics.median(mine / other for mine, other in zip(own, values, strict=True)), 3)
            for name, values in rates.items()
            if name != "engine"
        },
    }


class ForwardTimer:
    """Counts the seconds that a decoder spends in its forward pass."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.seconds = decoder, 0.0
        self.methods: dict[str, Callable[..., Any]] = {"read_with": decoder.read_with, "logits": decoder.logits}

    def __enter__(self) -> "ForwardTimer":
        for name, method in self.methods.items():
            object.__setattr__(self.decoder, name, self._timed(method))
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.methods:
            object.__delattr__(self.decoder, name)

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def measure_overhead(subject: Subject, concurrency: int, options: argparse.Namespace, rng: random.Random) -> Report:
    """Measure the overhead of the steps in which all requests decode."""
    steps, forwards = time_decoding(subject, draw_prompts(subject, concurrency, rng), options.num_tokens)
    step, forward = statistics.median(steps), statistics.median(forwards)
    return {
        "concurrency": concurrency,
        "num_steps": len(steps),
        "step_ms": round(1e3 * step, 2),
        "forward_ms": round(1e3 * forward, 2),
        "overhead": round(1 - forward / step, 4),
    }


def time_decoding(subject: Subject, prompts: Prompts, num_tokens: int) -> tuple[list[float], list[float]]:
    """Return the seconds of each step in which all requests decode, and those of its forward pass."""
    for prompt in prompts:
        subject.engine.add(subject.request(prompt, num_tokens))
    steps: list[float] = []
    forwards: list[float] = []
    with ForwardTimer(subject.decoder) as timer:
        while subject.engine.has_work:
            timer.seconds = 0.0
            seconds = time_step(subject.engine)
            stats = subject.engine.stats
            if stats.num_tokens == stats.num_computed_slots == len(prompts):
                steps.append(seconds)
                forwards.append(timer.seconds)
    return steps, forwards


def measure_ttft(subject: Subject, rng: random.Random) -> Report:
    """Measure the time to first token of a short prompt, alone and beside a long prefill at several points of it."""
    alone = statistics.median(time_to_first_token(subject, rng) for _ in range(NUM_ALONE))
    return {
        "prompt_slots": SHORTEST_PROMPT,
        "long_prompt_slots": LONG_PROMPT,
        "alone_ms": round(1e3 * alone, 1),
        "beside_long_prefill": [measure_arrival(subject, share, alone, rng) for share in ARRIVALS],
    }


def measure_arrival(subject: Subject, computed_share: float, alone: float, rng: random.Random) -> Report:
    """Measure a short prompt that arrives after `computed_share` of the long one, when the next step has just begun."""
    engine, long = subject.engine, subject.request(subject.draw_prompt(LONG_PROMPT, rng), 1)
    engine.add(long)
    while engine.tasks[long].num_computed < computed_share * LONG_PROMPT:
        engine.step()
    begun_step = time_step(engine)
    rest = time_to_first_token(subject, rng)
    engine.cancel(long)
    return {
        "computed_share": computed_share,
        "ttft_ms": round(1e3 * (begun_step + rest), 1),
        "begun_step_ms": round(1e3 * begun_step, 1),
        "rest_against_alone": round(rest / alone, 2),
    }


def time_to_first_token(subject: Subject, rng: random.Random) -> float:
    """Add a short prompt; return the seconds until its first token."""
    request = subject.request(subject.draw_prompt(SHORTEST_PROMPT, rng), 1)
    start = time.perf_counter()
    subject.engine.add(request)
    while request in subject.engine.tasks:
        subject.engine.step()
    return time.perf_counter() - start


def time_step(engine: Engine) -> float:
    start = time.perf_counter()
    engine.step()
    return time.perf_counter() - start


def render(report: Report) -> str:
    """Return the report as text: for each decoder a table, its overhead and its times to first token."""
    sections = []
    for name, one in report["decoders"].items():
        about = f"{name}, {one['num_parameters'] / 1e6:.1f}M parameters, {report['num_tokens']} tokens an answer"
        details = [*map(_overhead_line, one["overhead"]), *_ttft_lines(one.get("ttft"))]
        sections.append("\n".join([about, "", markdown_table(report, name), "", *details, ""]))
    return "\n".join(sections)


def markdown_table(report: Report, decoder: str) -> str:
    """Return a table of the engine's tokens per second, and of how many times each other method's that is."""
    rows = report["decoders"][decoder]["throughput"]
    others = list(rows[0]["engine_against"])
    header = ["requests", "engine, tokens/s", *(f"against {other}" for other in others)]
    cells = [
        [
            row["concurrency"],
            f"{row['tokens_per_second']['engine']:.0f}",
            *(f"{row['engine_against'][other]:.2f}×" for other in others),
        ]
        for row in rows
    ]
    return table(header, cells, num_text=0)


def _overhead_line(row: Report) -> str:
    share = f"{100 * row['overhead']:.1f}% of it outside the forward pass"
    return f"{row['concurrency']} decoding: {row['step_ms']:.1f} ms a step, {share}"


def _ttft_lines(ttft: Report | None) -> list[str]:
    if ttft is None:
        return []
    alone = f"{ttft['prompt_slots']} slots alone: first token after {ttft['alone_ms']:.0f} ms"
    return [alone] + [
        f"beside {ttft['long_prompt_slots']} slots, {row['computed_share']:.0%} of them computed: after "
        f"{row['ttft_ms']:.0f} ms, the step that had begun {row['begun_step_ms']:.0f} ms, the rest "
        f"{row['rest_against_alone']:.1f} times that alone"
        for row in ttft["beside_long_prefill"]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("decoders", nargs="*", default=["30m", "checkpoints/world"], help="shapes or checkpoints")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--num-tokens", type=int, default=128, help="tokens of every answer")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--kv-cache-mib", type=int, default=EngineSettings.kv_cache_mib)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    report = {
        "command": " ".join(["python -m perf.engine", *sys.argv[1:]]),
        **describe_environment(),
        "num_threads": torch.get_num_threads(),
        "num_tokens": options.num_tokens,
        "rounds": options.rounds,
        "decoders": {name: measure(name, options) for name in options.decoders},
    }
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(render(report))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
