"""Measures one checkpoint on the same prompts: Hugging Face's generate, llama.cpp, our plain path, compressed.

    make perf-full        or: python -m perf.peers --output perf/results/peers.json

    generate      transformers in this process, over all context tokens: tokenise, embed, generate greedily
    llama.cpp     its own server (perf/llama_cpp.py), over all context tokens, if `--gguf` names a file for it
    plain         the served ensemble with every chunk expanded: the same tokens, through Triton
    compressed    the served ensemble with the store warm and `--expand-fraction` of the chunks expanded

    TTFT          seconds from the text to the first token, at generate's streamer or at the client over gRPC
    answer        seconds from the text to the last token of the answer; all answers are equally long

The ways take turns on passages that are new in every round; while one is timed the others are idle. The figures are
medians over rounds, and medians of ratios within a round. Where the checkpoint's trained window is long enough, the run
checks that generate and the plain path give the same tokens. The last line of the output is the report as one JSON
object.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging as transformers_logging

from perf.corpus import QUESTION, Corpus
from perf.deployment import ask, connect, deploy, serve
from perf.in_process import BareDecoder
from perf.llama_cpp import LlamaCpp
from perf.results import Report, describe_run, emit, median_ratio, summarise
from refrag.config import RefragConfig
from refrag.reporting import table
from refrag_client import RefragClient, StoreClient

SPARE_SLOTS = 256
LLAMA_CPP = "llama.cpp"


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


def measure(options: argparse.Namespace) -> list[Report]:
    trained_window = RefragConfig.load(options.checkpoint).max_prompt_slots
    window = max(options.context_tokens) + SPARE_SLOTS
    with tempfile.TemporaryDirectory() as folder:
        repository = deploy(options.checkpoint, Path(folder), window)
        corpus, bare = Corpus(repository), BareDecoder(Path(folder, "checkpoint"))
        with (
            serve(repository, disk_path=f"{folder}/store") as server,
            connect(server) as client,
            StoreClient(server.grpc_address) as store,
            start_llama_cpp(options.gguf, window) as llama_cpp,
        ):
            ways: dict[str, Way] = {
                "generate": Generate(bare, options.num_tokens),
                **({} if llama_cpp is None else {LLAMA_CPP: Quantised(llama_cpp, bare, options.num_tokens)}),
                # Before the plain way, which would leave the passages' tokens in the server's memory.
                "compressed": Served(client, options.expand_fraction, options.num_tokens),
                "plain": Served(client, 1.0, options.num_tokens),
            }
            return [
                measure_length(
                    ways, corpus, store, num_tokens, options.rounds, num_tokens + SPARE_SLOTS < trained_window
                )
                for num_tokens in tqdm(options.context_tokens, desc="peers", disable=None)
            ]


def start_llama_cpp(gguf: Path | None, window: int) -> AbstractContextManager[LlamaCpp | None]:
    return nullcontext() if gguf is None else LlamaCpp(gguf, window, torch.get_num_threads())


def measure_length(
    ways: dict[str, Way], corpus: Corpus, store: StoreClient, num_tokens: int, rounds: int, must_agree: bool
) -> Report:
    timed: dict[str, list[Timed]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        passages = corpus.draw(num_tokens)
        store.index(passages)
        answers = {name: way(passages) for name, way in ways.items()}
        if must_agree:
            assert answers["generate"].token_ids == answers["plain"].token_ids, "generate and the plain path disagree"
        # The first round warms up.
        for name, answer in answers.items() if number else ():
            timed[name].append(answer)
    row: Report = {"context_tokens": num_tokens, "tokens_compared": must_agree}
    for quantity in ("ttft", "total"):
        seconds = {name: [getattr(one, quantity) for one in series] for name, series in timed.items()}
        row[quantity] = {name: summarise(values) for name, values in seconds.items()}
        row[f"{quantity}_against_generate"] = {
            name: median_ratio(seconds["generate"], seconds[name]) for name in ways if name != "generate"
        }
    return row


def markdown(report: Report) -> str:
    """Return a table, with machine, commit and command."""
    about = f"`{report['command']}` on {report['machine']}, commit {report['commit']}."
    return f"{peers_table(report)}\n\n{about}"


def peers_table(report: Report) -> str:
    others = list(report["rows"][0]["ttft_against_generate"])
    header = ["context tokens", "first token of generate", *others, "answer of generate", *others]
    rows = []
    for row in report["rows"]:
        cells = [f"{row['context_tokens']:,}"]
        for quantity in ("ttft", "total"):
            cells.append(f"{row[quantity]['generate']['p50_ms']:,.0f} ms")
            cells += [
                f"{row[quantity][name]['p50_ms']:,.0f} ms, {ratio:.1f}×"
                for name, ratio in row[f"{quantity}_against_generate"].items()
            ]
        rows.append(cells)
    return table(header, rows, num_text=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/world"))
    parser.add_argument("--context-tokens", type=int, nargs="+", default=[1024, 4096, 8192])
    parser.add_argument("--expand-fraction", type=float, default=0.1)
    parser.add_argument(
        "--gguf", type=Path, help="a file of the same weights, to measure llama.cpp on; needs xllamacpp"
    )
    parser.add_argument("--num-tokens", type=int, default=32, help="tokens of every answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    report = {
        **describe_run("perf.peers"),
        "answer_tokens": options.num_tokens,
        "expand_fraction": options.expand_fraction,
        "gguf": options.gguf and options.gguf.name,
        "rows": measure(options),
    }
    emit(report, markdown, options.output)


if __name__ == "__main__":
    main()
