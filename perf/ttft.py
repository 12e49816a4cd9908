"""Time to first token against context length, client side over gRPC: what a caller of the real graph waits.

    make perf        or: python -m perf.ttft --output perf/results/ttft.json

Measured are, in turns, so that ratios hold on a noisy machine,

    plain        every chunk expanded: the decoder reads all context tokens, nothing is looked up or encoded
    cold         the store has none of the context's vectors, which are encoded and stored
    warm         the store has all of them

for each context length, chunk size k and expanded fraction p. Passages are new in every round, and in another order for
the warm store, so that no prompt's KV cache can be found again.

    TTFT         seconds from before the request is encoded to the first response that has a token; one request at a
                 time; a round of warm-up; median, 95th and 99th percentile, and of how many
    speed-up     plain over it: median of the ratios within a round
    analytic     what the paper's model predicts for the same slots (perf/analytic.py)
    bare         tokenising and one forward pass over as many slots by transformers in this process, with nothing
                 between; warm, nothing expanded. Over it: median of the ratios within a round
    stages       where the time goes (perf/stages.py), of requests of their own

A request that fails, or a store that is warmer or colder than it should be, ends the run. The last line of the output
is the report as one JSON object.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from perf.analytic import predicted_speedup
from perf.corpus import Corpus
from perf.deployment import ask, deploy, serve
from perf.in_process import BareDecoder, decoder_width
from perf.results import Report, describe_run, emit, median_ratio, summarise, table
from perf.stages import StageClock, stage_seconds
from refrag_client import Answer, RefragClient

# Answers are one token long; what is over is the question's.
SPARE_SLOTS = 128
# Vectors are stored once the answer is on its way.
STORED_SECONDS = 0.5
# What a summary shows.
CHOSEN_SIZE, CHOSEN_FRACTIONS = 16, (0.0, 0.1, 1.0)
# Of a context's tokens, so many may be in chunks that another context has too: the last ones of passages are short.
TOLERATED_HITS = 0.2


@dataclass(frozen=True)
class Way:
    """One way to ask."""

    store: str
    expand_fraction: float

    @property
    def name(self) -> str:
        return "plain" if self.store == "plain" else f"{self.store}, p={self.expand_fraction:g}"


PLAIN = Way("plain", 1.0)


@dataclass
class Series:
    """One way at one length: its times in the order of the rounds."""

    ttft: list[float] = field(default_factory=list)
    prompt_slots: int = 0
    stages: dict[str, float] = field(default_factory=dict)


class Server:
    """A served checkpoint of one chunk size, and everything that asks it."""

    def __init__(self, corpus: Corpus, client: RefragClient, clock: StageClock, bare: BareDecoder) -> None:
        self.corpus, self.client, self.clock, self.bare = corpus, client, clock, bare
        self.rng = random.Random(0)

    def ask_in_turn(self, num_tokens: int, ways: list[Way]) -> Iterator[tuple[Way, Answer]]:
        """Every way once: the plain one and cold ones about passages of their own, each warm one about a cold one's."""
        passages = {way: self.corpus.draw(num_tokens) for way in ways if way.store != "warm"}
        for way, own in passages.items():
            yield way, self.ask(way, own)
        time.sleep(STORED_SECONDS)
        for way in ways:
            if way.store == "warm":
                yield way, self.ask(way, self.shuffled(passages[Way("cold", way.expand_fraction)]))

    def ask(self, way: Way, passages: list[str]) -> Answer:
        answer = ask(self.client, passages, way.expand_fraction)
        known, total = answer.statistics.num_stored_chunks, answer.statistics.num_chunks
        assert way.store != "warm" or known == total, f"{total - known} of {total} chunks were not stored"
        assert way.store == "warm" or known <= TOLERATED_HITS * total, f"{known} of {total} chunks were stored"
        assert answer.ttft_seconds is not None, "the answer has no token"
        return answer

    def shuffled(self, passages: list[str]) -> list[str]:
        return self.rng.sample(passages, len(passages))

    def measure_stages(self, num_tokens: int, way: Way, num_requests: int) -> dict[str, float]:
        """Seconds of each stage, in the mean."""
        asked = [self.corpus.draw(num_tokens) for _ in range(num_requests)]
        if way.store == "warm":
            for passages in asked:
                self.ask(Way("cold", 0.0), passages)
        before = self.clock.read()
        ttft = [self.ask(way, self.shuffled(passages)).ttft_seconds or 0.0 for passages in asked]
        return stage_seconds(before, self.clock.read(), statistics.mean(ttft))


def measure_length(server: Server, num_tokens: int, ways: list[Way], options: argparse.Namespace) -> list[Report]:
    series = {way: Series() for way in ways}
    bare: list[float] = []
    floor = Way("warm", 0.0)
    for number in range(options.rounds + 1):
        for way, answer in server.ask_in_turn(num_tokens, ways):
            series[way].prompt_slots = answer.statistics.prompt_slots
            # The first round warms up.
            if number:
                series[way].ttft.append(answer.ttft_seconds or 0.0)
        # After a pause, as the first of the warm ones.
        time.sleep(STORED_SECONDS)
        seconds = server.bare.prefill(server.corpus.draw(num_tokens), series[floor].prompt_slots)
        bare += [seconds] if number else []
    for way in ways:
        series[way].stages = server.measure_stages(num_tokens, way, options.stage_requests)
    rows = [_row(num_tokens, way, series, server) for way in ways]
    for row in rows:
        if (row["store"], row["expand_fraction"]) == ("warm", 0.0):
            row["bare"] = summarise(bare)
            row["against_bare"] = median_ratio(series[floor].ttft, bare)
    return rows


def _row(num_tokens: int, way: Way, series: dict[Way, Series], server: Server) -> Report:
    own, plain = series[way], series.get(PLAIN)
    row: Report = {
        "chunk_size": server.corpus.config.chunk_size,
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
    for chunk_size in options.chunk_sizes:
        with tempfile.TemporaryDirectory() as folder:
            window = max(options.context_tokens) + SPARE_SLOTS
            repository = deploy(options.checkpoint, Path(folder), window, chunk_size)
            corpus, bare = Corpus(repository), BareDecoder(Path(folder, "checkpoint"))
            with (
                serve(repository, disk_path=f"{folder}/store") as running,
                RefragClient(running.grpc_address) as client,
                StageClock(running) as clock,
            ):
                server = Server(corpus, client, clock, bare)
                for num_tokens in tqdm(options.context_tokens, desc=f"TTFT, k={chunk_size}", disable=None):
                    rows += measure_length(server, num_tokens, choose_ways(num_tokens, options), options)
    return rows


def choose_ways(num_tokens: int, options: argparse.Namespace) -> list[Way]:
    """The plain one up to the length that is asked for: its time grows with the square of it."""
    compressed = [Way(store, fraction) for store in ("cold", "warm") for fraction in options.expand_fractions]
    return ([PLAIN] if num_tokens <= options.longest_plain else []) + compressed


def markdown(report: Report) -> str:
    """Tables of times and of stages, with machine, commit and command."""
    about = f"`{report['command']}` on {report['machine']}, commit {report['commit']}."
    return "\n\n".join([ttft_table(report), stage_table(report), about])


def ttft_table(report: Report) -> str:
    return _table(report["rows"])


def chosen_table(report: Report) -> str:
    """The same at the checkpoint's own chunk size alone, without small fractions."""
    rows = [row for row in report["rows"] if row["chunk_size"] == CHOSEN_SIZE]
    return _table([row for row in rows if row["expand_fraction"] in CHOSEN_FRACTIONS])


def _table(rows: list[Report]) -> str:
    header = ["context tokens", "k", "way", "slots", "first token", "p95", "speed-up", "analytic", "over bare"]
    return table(header, [_cells(row) for row in rows], num_text=0)


def _cells(row: Report) -> list[str]:
    way = Way(row["store"], row["expand_fraction"])
    return [
        f"{row['context_tokens']:,}",
        str(row["chunk_size"]),
        way.name,
        f"{row['prompt_slots']:,}",
        f"{row['ttft']['p50_ms']:.0f} ms",
        f"{row['ttft']['p95_ms']:.0f} ms",
        f"{row['speedup']:.1f}×" if "speedup" in row else "",
        f"{row['analytic']:.1f}×" if "analytic" in row else "",
        f"{row['against_bare']:.2f}×" if "against_bare" in row else "",
    ]


def stage_table(report: Report) -> str:
    """Milliseconds of each stage at the longest context that all ways were asked with."""
    longest = max(row["context_tokens"] for row in report["rows"] if row["store"] == "plain")
    chosen = [row for row in report["rows"] if row["context_tokens"] == longest]
    rows = [row for row in chosen if row["chunk_size"] == CHOSEN_SIZE] or chosen
    header = [f"{longest:,} tokens, ms", *rows[0]["stages_ms"]]
    names = [f"k={row['chunk_size']}, {Way(row['store'], row['expand_fraction']).name}" for row in rows]
    return table(
        header,
        [[name, *(f"{ms:.1f}" for ms in row["stages_ms"].values())] for name, row in zip(names, rows, strict=True)],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/demo"))
    parser.add_argument("--context-tokens", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--chunk-sizes", type=int, nargs="+", default=[16])
    parser.add_argument("--expand-fractions", type=float, nargs="+", default=[0.0, 0.1], help="0 must be among them")
    parser.add_argument("--longest-plain", type=int, default=16384, help="context tokens; longer ones take too long")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stage-requests", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    report = {**describe_run("perf.ttft"), "decoder_width": decoder_width(options.checkpoint), "rows": measure(options)}
    emit(report, markdown(report), options.output)


if __name__ == "__main__":
    main()
