"""Measures a client's time to first token from the real ensemble, over gRPC, against context length.

    make perf        or: python -m perf.ttft --output perf/results/ttft.json

Four ways to ask are measured in turns, so that ratios hold on a noisy machine:

    plain        every chunk is expanded: the decoder reads all context tokens, and no chunk is looked up or encoded
    cold         the store has none of the context's vectors; they are encoded and stored
    warm         the passages were indexed, as by `refrag index`, and never asked about: the disk has their tokens and
                 vectors
    hot          the passages were asked about before: their tokens and vectors are in the server's memory

The ways are measured for each context length, chunk size k and expanded fraction p. Passages are new in every round,
and those of hot come in another order, so that no prompt finds its KV cache again. Encoders after the first, such as
int8, are measured plain and cold only, each on a server of its own. Their speed-up is over plain on that server; the
table shows plain of the first encoder only.

    TTFT         seconds from just before the request is encoded to the first response that has a token; one request at
                 a time, after a round of warm-up; median, 95th and 99th percentile, and the number of requests
    speed-up     plain over the way: median of the ratios within a round
    analytic     what the paper's model predicts for the same slots (perf/analytic.py)
    over bare    warm with nothing expanded, over bare: transformers in this process, tokenising and running one forward
                 pass over as many slots, with nothing between; median of the ratios within a round
    stages       where the time goes (perf/stages.py), measured with separate requests

A request that fails, or a store that is warmer or colder than it should be, ends the run. The last line of the output
is the report as one JSON object.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from perf.analytic import predicted_speedup
from perf.corpus import Corpus
from perf.deployment import ask, connect, deploy, serve
from perf.in_process import BareDecoder, decoder_width
from perf.results import Report, describe_run, emit, median_ratio, summarise
from perf.stages import StageClock, stage_seconds
from refrag.export.precision import Precision
from refrag.reporting import table
from refrag_client import Answer, RefragClient, StoreClient

# Slots beyond the context: the question's, and one for the answer's only token.
SPARE_SLOTS = 128
# A pause between preparing a round and asking, so that work left from preparing does not slow the answers.
PAUSE_SECONDS = 0.5
# The chunk size that summaries show.
CHOSEN_SIZE = 16
# Share of a new context's chunks that may be stored already: the short last chunks of passages may be alike.
TOLERATED_HITS = 0.2
STORES = ("cold", "warm", "hot")


@dataclass(frozen=True)
class Way:
    """A way to ask: what the store holds beforehand, and the fraction of chunks to expand."""

    store: str
    expand_fraction: float


PLAIN = Way("plain", 1.0)


@dataclass
class Series:
    """Results of one way at one context length; its times to first token are in the order of the rounds."""

    ttft: list[float] = field(default_factory=list)
    prompt_slots: int = 0
    stages: dict[str, float] = field(default_factory=dict)


class Server:
    """A served checkpoint with one chunk size and one encoder, with its clients and clocks."""

    def __init__(
        self,
        precision: Precision,
        corpus: Corpus,
        client: RefragClient,
        store: StoreClient,
        clock: StageClock,
        bare: BareDecoder,
    ) -> None:
        self.precision, self.corpus, self.client, self.store = precision, corpus, client, store
        self.clock, self.bare = clock, bare

    def ask_in_turn(self, num_tokens: int, ways: list[Way]) -> Iterator[tuple[Way, Answer]]:
        """Ask each way once, about passages of its own, or for a hot way about those of the warm way before it."""
        passages = {way: self.prepare(num_tokens, way) for way in ways if way.store != "hot"}
        time.sleep(PAUSE_SECONDS)
        for way in ways:
            own = rotated(passages[Way("warm", way.expand_fraction)]) if way.store == "hot" else passages[way]
            yield way, self.ask(way, own)

    def prepare(self, num_tokens: int, way: Way) -> list[str]:
        """Return new passages; index them first if the way needs them in the store."""
        passages = self.corpus.draw(num_tokens)
        if way.store in ("warm", "hot"):
            self.store.index(passages)
        return passages

    def ask(self, way: Way, passages: list[str]) -> Answer:
        answer = ask(self.client, passages, way.expand_fraction)
        known, total = answer.statistics.num_stored_chunks, answer.statistics.num_chunks
        has_all = way.store in ("warm", "hot")
        assert not has_all or known == total, f"{total - known} of {total} chunks were not stored"
        assert has_all or known <= TOLERATED_HITS * total, f"{known} of {total} chunks were stored"
        assert answer.ttft_seconds is not None, "the answer has no token"
        return answer

    def measure_stages(self, num_tokens: int, way: Way, num_requests: int) -> dict[str, float]:
        """Return the mean seconds of each stage."""
        asked = [self.prepare(num_tokens, way) for _ in range(num_requests)]
        if way.store == "hot":
            for passages in asked:
                self.ask(Way("warm", 0.0), passages)
        before = self.clock.read()
        ttft = [self.ask(way, rotated(passages)).ttft_seconds or 0.0 for passages in asked]
        return stage_seconds(before, self.clock.read(), statistics.mean(ttft))


def rotated(passages: list[str]) -> list[str]:
    """Return the passages with the first one moved to the end."""
    return [*passages[1:], *passages[:1]]


def measure_length(server: Server, num_tokens: int, ways: list[Way], options: argparse.Namespace) -> list[Report]:
    """Measure all ways at one context length; return a row for each."""
    series = {way: Series() for way in ways}
    bare: list[float] = []
    floor = Way("warm", 0.0)
    for number in range(options.rounds + 1):
        for way, answer in server.ask_in_turn(num_tokens, ways):
            series[way].prompt_slots = answer.statistics.prompt_slots
            # The first round warms up.
            if number:
                series[way].ttft.append(answer.ttft_seconds or 0.0)
        if floor in ways:
            seconds = server.bare.prefill(server.corpus.draw(num_tokens), series[floor].prompt_slots)
            bare += [seconds] if number else []
    for way in ways:
        series[way].stages = server.measure_stages(num_tokens, way, options.stage_requests)
    rows = {way: _row(num_tokens, way, series, server) for way in ways}
    if floor in ways:
        rows[floor]["bare"] = summarise(bare)
        rows[floor]["against_bare"] = median_ratio(series[floor].ttft, bare)
    return list(rows.values())


def _row(num_tokens: int, way: Way, series: dict[Way, Series], server: Server) -> Report:
    own, plain = series[way], series.get(PLAIN)
    row: Report = {
        "chunk_size": server.corpus.config.chunk_size,
        "encoder": server.precision,
        "context_tokens": num_tokens,
        "store": way.store,
        "expand_fraction": way.expand_fraction,
        "prompt_slots": own.prompt_slots,
        "ttft": summarise(own.ttft),
        "stages_ms": {name: round(1e3 * seconds, 2) for name, seconds in own.stages.items()},
    }
    if plain is not None and way != PLAIN:
        row["speedup"] = median_ratio(plain.ttft, own.ttft)
        row["analytic"] = round(predicted_speedup(plain.prompt_slots, own.prompt_slots, server.bare.width), 2)
    return row


def measure(options: argparse.Namespace) -> list[Report]:
    rows = []
    for chunk_size, precision in itertools.product(options.chunk_sizes, options.encoders):
        is_first = precision == options.encoders[0]
        with serve_one(chunk_size, precision, options) as server:
            for num_tokens in tqdm(options.context_tokens, desc=f"TTFT, k={chunk_size}, {precision}", disable=None):
                ways = choose_ways(num_tokens, STORES if is_first else ("cold",), options)
                measured = measure_length(server, num_tokens, ways, options)
                rows += [row for row in measured if is_first or row["store"] != "plain"]
    return sorted(rows, key=lambda row: (row["chunk_size"], row["context_tokens"]))


@contextmanager
def serve_one(chunk_size: int, precision: Precision, options: argparse.Namespace) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        window = options.window or max(options.context_tokens) + SPARE_SLOTS
        repository = deploy(options.checkpoint, Path(folder), window, chunk_size, precision)
        corpus, bare = Corpus(repository), BareDecoder(Path(folder, "checkpoint"))
        with (
            serve(repository, disk_path=f"{folder}/store") as running,
            connect(running) as client,
            StoreClient(running.grpc_address) as store,
            StageClock(running) as clock,
        ):
            yield Server(precision, corpus, client, store, clock, bare)


def choose_ways(num_tokens: int, stores: Sequence[str], options: argparse.Namespace) -> list[Way]:
    """Return the ways to ask; plain only up to a given length, since its time grows with the square of the length."""
    chosen = [store for store in stores if store in options.stores]
    compressed = [Way(store, fraction) for store in chosen for fraction in options.expand_fractions]
    return ([PLAIN] if num_tokens <= options.longest_plain else []) + compressed


def name_way(row: Report) -> str:
    """Return the name of a row's way, without the chunk size."""
    if row["store"] == "plain":
        return "plain"
    encoder = "" if row["encoder"] == "fp32" else f" in {row['encoder']}"
    return f"{row['store']}{encoder}, p={row['expand_fraction']:g}"


def markdown(report: Report) -> str:
    """Return tables of times and of stages, with machine, commit and command."""
    about = f"`{report['command']}` on {report['machine']}, commit {report['commit']}."
    return "\n\n".join([ttft_table(report), stage_table(report), about])


def ttft_table(report: Report) -> str:
    return _table(report["rows"])


def chosen_table(report: Report) -> str:
    """Return the table of times for the chosen chunk size only."""
    return _table([row for row in report["rows"] if row["chunk_size"] == CHOSEN_SIZE])


def _table(rows: list[Report]) -> str:
    header = ["context tokens", "k", "way", "slots", "first token", "p95", "speed-up", "analytic", "over bare"]
    return table(header, [_cells(row) for row in rows], num_text=0)


def _cells(row: Report) -> list[str]:
    return [
        f"{row['context_tokens']:,}",
        str(row["chunk_size"]),
        name_way(row),
        f"{row['prompt_slots']:,}",
        f"{row['ttft']['p50_ms']:.0f} ms",
        f"{row['ttft']['p95_ms']:.0f} ms",
        f"{row['speedup']:.1f}×" if "speedup" in row else "",
        f"{row['analytic']:.1f}×" if "analytic" in row else "",
        f"{row['against_bare']:.2f}×" if "against_bare" in row else "",
    ]


def stage_table(report: Report) -> str:
    """Return a table of the milliseconds of each stage, for the rows of `stage_rows`."""
    rows = stage_rows(report)
    longest = rows[0]["context_tokens"]
    header = [f"{longest:,} tokens, ms", *rows[0]["stages_ms"]]
    names = [f"k={row['chunk_size']}, {name_way(row)}" for row in rows]
    return table(
        header,
        [[name, *(f"{ms:.1f}" for ms in row["stages_ms"].values())] for name, row in zip(names, rows, strict=True)],
    )


def stage_rows(report: Report) -> list[Report]:
    """Return the rows of the chosen chunk size, or else the first one, at the longest context with a plain row.

    Where no row is plain, the longest context of all is taken.
    """
    sizes = [row["chunk_size"] for row in report["rows"]]
    size = CHOSEN_SIZE if CHOSEN_SIZE in sizes else sizes[0]
    rows = [row for row in report["rows"] if row["chunk_size"] == size]
    longest = max(row["context_tokens"] for row in [row for row in rows if row["store"] == "plain"] or rows)
    return [row for row in rows if row["context_tokens"] == longest]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/world"))
    parser.add_argument("--context-tokens", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--chunk-sizes", type=int, nargs="+", default=[16])
    parser.add_argument("--encoders", nargs="+", choices=get_args(Precision), default=["fp32"])
    parser.add_argument("--expand-fractions", type=float, nargs="+", default=[0.0, 0.1], help="0 must be among them")
    parser.add_argument("--stores", nargs="+", choices=STORES, default=STORES, help="hot only with warm")
    parser.add_argument("--longest-plain", type=int, default=16384, help="context tokens; longer ones take too long")
    parser.add_argument("--window", type=int, help="the decoder's, in slots; else the longest context and a question")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stage-requests", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    report = {**describe_run("perf.ttft"), "decoder_width": decoder_width(options.checkpoint), "rows": measure(options)}
    emit(report, markdown, options.output)


if __name__ == "__main__":
    main()
