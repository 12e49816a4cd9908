"""Measures one checkpoint on the same prompts: Hugging Face's generate, llama.cpp, our plain path, compressed.

    make perf-full        or: python -m perf.peers --output perf/results/peers.json

    generate      transformers in this process, over all context tokens: tokenise, embed, generate greedily
    llama.cpp     its own server (perf/llama_cpp.py), over all context tokens, for each file that `--gguf` names
    plain         the served ensemble with every chunk expanded: the same tokens, through Triton
    compressed    the served ensemble with the store warm and `--expand-fraction` of the chunks expanded

    TTFT          seconds from the text to the first token, at generate's streamer or at the client over gRPC
    answer        seconds from the text to the last token of the answer; all answers are equally long
    tokens/s      of `--callers` who ask at once, each over passages of its own: the tokens of all answers over the time
                  from the first of them to the last, so that with one caller it is the speed of decoding

The ensembles are served by each of `--decoders`: torch, int8 (torch in 8 bits) and vllm, whose environment `make vllm`
makes. The ways take turns on passages that are new in every round; while one is timed the others are idle. The figures
are medians over rounds, and medians of ratios within a round, with the least and the greatest of them. Where the
checkpoint's trained window is long enough, the run checks that generate and torch's plain path give the same tokens.
The last line of the output is the report as one JSON object.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging as transformers_logging

from perf.corpus import QUESTION, Corpus
from perf.deployment import DECODERS, ask, connect, decoder_suffix, deploy, serve_decoder
from perf.in_process import BareDecoder
from perf.llama_cpp import LlamaCpp
from perf.results import Report, describe_run, emit, median_ratio, ratios, summarise, write
from refrag.config import RefragConfig
from refrag.reporting import table
from refrag_client import RefragClient, StoreClient

SPARE_SLOTS = 256
LLAMA_CPP = "llama.cpp"
GENERATE = "generate"


@dataclass(frozen=True)
class Timed:
    """An answer's tokens, with the seconds to its first and to its last."""

    token_ids: tuple[int, ...]
    ttft: float
    total: float


Way = Callable[[Sequence[str]], Timed]


class FirstToken(BaseStreamer):
    """Notes when generate gives its first token: in the second call, since the first brings the prompt."""

    def __init__(self) -> None:
        self.num_calls, self.time = 0, 0.0

    def put(self, value: Any) -> None:
        self.num_calls += 1
        if self.num_calls == 2:
            self.time = time.perf_counter()

    def end(self) -> None:
        """Do nothing; a streamer must have this method."""


class Generate:
    """Answers by Hugging Face's generate."""

    def __init__(self, bare: BareDecoder, num_tokens: int) -> None:
        self.bare, self.num_tokens = bare, num_tokens

    @torch.inference_mode()
    def __call__(self, passages: Sequence[str]) -> Timed:
        streamer, start = FirstToken(), time.perf_counter()
        prompt = torch.tensor([self.bare.plain_prompt(passages, QUESTION)])
        ids = self.bare.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=self.num_tokens,
            min_new_tokens=self.num_tokens,
            do_sample=False,
            streamer=streamer,
        )
        end = time.perf_counter()
        return Timed(tuple(ids[0, prompt.shape[1] :].tolist()), streamer.time - start, end - start)


class Quantised:
    """Answers by llama.cpp, whose rounded weights may give other tokens."""

    def __init__(self, server: LlamaCpp, bare: BareDecoder, num_tokens: int) -> None:
        self.server, self.bare, self.num_tokens = server, bare, num_tokens

    def __call__(self, passages: Sequence[str]) -> Timed:
        start = time.perf_counter()
        prompt = self.bare.plain_prompt(passages, QUESTION)
        tokenised = time.perf_counter() - start
        first, last = self.server.answer(prompt, self.num_tokens)
        return Timed((), tokenised + first, tokenised + last)


class Served:
    """Answers through the served ensemble."""

    def __init__(self, client: RefragClient, expand_fraction: float, num_tokens: int) -> None:
        self.client, self.expand_fraction, self.num_tokens = client, expand_fraction, num_tokens

    def __call__(self, passages: Sequence[str]) -> Timed:
        answer = ask(self.client, passages, self.expand_fraction, self.num_tokens)
        assert answer.ttft_seconds is not None, "the answer has no token"
        return Timed(answer.token_ids, answer.ttft_seconds, answer.total_seconds)


def measure(report: Report, options: argparse.Namespace) -> None:
    """Add the rows to the report, which is written after each: a run takes long."""
    trained_window = RefragConfig.load(options.checkpoint).max_prompt_slots
    window = max([*options.context_tokens, options.caller_tokens]) + SPARE_SLOTS
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        repository = deploy(options.checkpoint, folder, window)
        corpus, bare = Corpus(repository), BareDecoder(folder / "checkpoint")
        ways: dict[str, Way] = {GENERATE: Generate(bare, options.num_tokens)}
        for gguf in options.gguf:
            running = LlamaCpp(gguf, window, torch.get_num_threads(), max([1, *options.callers]))
            ways[f"{LLAMA_CPP}, {gguf.stem.rpartition('.')[2]}"] = Quantised(
                stack.enter_context(running), bare, options.num_tokens
            )
        stores = []
        for decoder in options.decoders:
            server = stack.enter_context(serve_decoder(decoder, repository, folder))
            client = stack.enter_context(connect(server))
            suffix = decoder_suffix(decoder)
            # Before the plain way, which would leave the passages' tokens in the server's memory.
            ways[f"compressed{suffix}"] = Served(client, options.expand_fraction, options.num_tokens)
            ways[f"plain{suffix}"] = Served(client, 1.0, options.num_tokens)
            stores.append(stack.enter_context(StoreClient(server.grpc_address)))
        for num_tokens in tqdm(options.context_tokens, desc="peers", disable=None):
            must_agree = "torch" in options.decoders and num_tokens + SPARE_SLOTS < trained_window
            report["rows"].append(measure_length(ways, corpus, stores, num_tokens, options.rounds, must_agree))
            write(report, options.output)
        for number in options.callers:
            report["callers"].append(measure_callers(ways, corpus, stores, number, options))
            write(report, options.output)


def measure_callers(
    ways: dict[str, Way], corpus: Corpus, stores: Sequence[StoreClient], callers: int, options: argparse.Namespace
) -> Report:
    """Measure tokens per second of so many who ask at once; `generate` answers one at a time and is left out."""
    rates: dict[str, list[float]] = {name: [] for name in ways if name != GENERATE}
    for number in range(options.rounds + 1):
        asked = [corpus.draw(options.caller_tokens) for _ in range(callers)]
        for store in stores:
            store.index([passage for passages in asked for passage in passages])
        for name, series in rates.items():
            began = time.perf_counter()
            with ThreadPoolExecutor(callers) as pool:
                answers = list(pool.map(ways[name], asked))
            seconds = time.perf_counter() - began - min(answer.ttft for answer in answers)
            # The first round warms up. The first token is where the time begins.
            series += [(callers * options.num_tokens - 1) / seconds] if number else []
    return {
        "callers": callers,
        "context_tokens": options.caller_tokens,
        "tokens_per_second": {name: round(statistics.median(series), 1) for name, series in rates.items()},
        "tokens_per_second_range": {name: _range(series, 1) for name, series in rates.items()},
    }


def measure_length(
    ways: dict[str, Way],
    corpus: Corpus,
    stores: Sequence[StoreClient],
    num_tokens: int,
    rounds: int,
    must_agree: bool,
) -> Report:
    timed: dict[str, list[Timed]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        passages = corpus.draw(num_tokens)
        for store in stores:
            store.index(passages)
        answers = {name: way(passages) for name, way in ways.items()}
        if must_agree:
            assert answers[GENERATE].token_ids == answers["plain"].token_ids, "generate and the plain path disagree"
        # The first round warms up.
        for name, answer in answers.items() if number else ():
            timed[name].append(answer)
    row: Report = {"context_tokens": num_tokens, "tokens_compared": must_agree}
    for quantity in ("ttft", "total"):
        seconds = {name: [getattr(one, quantity) for one in series] for name, series in timed.items()}
        row[quantity] = {name: summarise(values) for name, values in seconds.items()}
        others = [name for name in ways if name != GENERATE]
        row[f"{quantity}_against_generate"] = {name: median_ratio(seconds[GENERATE], seconds[name]) for name in others}
        row[f"{quantity}_against_generate_range"] = {
            name: _range(ratios(seconds[GENERATE], seconds[name]), 3) for name in others
        }
    return row


def _range(values: Sequence[float], digits: int) -> list[float]:
    return [round(min(values), digits), round(max(values), digits)]


def markdown(report: Report) -> str:
    """Return the tables, with machine, commit and command."""
    about = f"`{report['command']}` on {report['machine']}, commit {report['commit']}."
    return "\n\n".join([peers_table(report), *([callers_table(report)] if report["callers"] else []), about])


def peers_table(report: Report) -> str:
    rows = []
    for row in report["rows"]:
        for name in row["ttft"]:
            cells = [f"{row['context_tokens']:,}", name]
            for quantity in ("ttft", "total"):
                cells += [f"{row[quantity][name]['p50_ms']:,.0f} ms", _ratio(row, quantity, name)]
            rows.append(cells)
    header = ["context tokens", "way", "first token", "faster than generate", "answer", "faster than generate"]
    return table(header, rows, num_text=2)


def _ratio(row: Report, quantity: str, name: str) -> str:
    if name == GENERATE:
        return ""
    low, high = row[f"{quantity}_against_generate_range"][name]
    return f"{row[f'{quantity}_against_generate'][name]:.1f}× ({low:.1f}–{high:.1f})"


def callers_table(report: Report) -> str:
    """Return tokens per second by the number of callers."""
    names = list(report["callers"][0]["tokens_per_second"])
    rows = [[name, *(_rate(row, name) for row in report["callers"])] for name in names]
    return table(["tokens/s", *(_callers(row["callers"]) for row in report["callers"])], rows)


def _rate(row: Report, name: str) -> str:
    low, high = row["tokens_per_second_range"][name]
    return f"{row['tokens_per_second'][name]:,.1f} ({low:,.1f}–{high:,.1f})"


def _callers(number: int) -> str:
    return f"{number} caller{'s' * (number > 1)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/world"))
    parser.add_argument("--context-tokens", type=int, nargs="+", default=[1024, 4096, 8192])
    parser.add_argument("--expand-fraction", type=float, default=0.1)
    parser.add_argument("--decoders", nargs="+", choices=list(DECODERS), default=["torch"])
    parser.add_argument("--gguf", type=Path, nargs="*", default=[], help="files for llama.cpp; needs xllamacpp")
    parser.add_argument("--callers", type=int, nargs="*", default=[], help="who ask at once")
    parser.add_argument("--caller-tokens", type=int, default=1024, help="context tokens of each caller")
    parser.add_argument("--num-tokens", type=int, default=32, help="tokens of every answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    report: Report = {
        **describe_run("perf.peers"),
        "answer_tokens": options.num_tokens,
        "expand_fraction": options.expand_fraction,
        "rows": [],
        "callers": [],
    }
    measure(report, options)
    emit(report, markdown, options.output)


if __name__ == "__main__":
    main()
