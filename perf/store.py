"""Measures what the store of chunk vectors costs, on the real server with a checkpoint's exported encoder.

    make bench-store        or: python -m perf.store --output perf/results/store.json

Everything is measured in one run, so ratios hold on a noisy machine:

    lookup       time of looking up the 512 chunks of a request, all of them stored, and of preprocessing as a whole,
                 which contains the lookup; the request is repeated, so its tokens are remembered; by the server's own
                 clock, one request at a time; medians, for each tier as the only one that has the vectors
    index        vectors per second of `refrag index` into an empty store, against ONNX Runtime alone with the same
                 model and the same chunks, already tokenised; in turns; median of ratios

perf.ttft measures what the store saves: the time to first token with a cold store and with a warm one.

The last line of the output is the report as one JSON object.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime

from perf.corpus import Corpus
from perf.deployment import ask, serve
from perf.results import Report, describe_run, emit, median_ratio
from perf.stages import StageClock
from refrag.context.chunking import Chunk
from refrag.embedded import EmbeddedServer
from refrag.export.repository import export_repository
from refrag.reporting import table
from refrag_client import RefragClient, StoreClient

ENCODER_ROWS = 256


def measure_lookup(repository: Path, corpus: Corpus, options: argparse.Namespace) -> list[Report]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tiers: dict[str, dict[str, Any]] = {
            "memory": {"disk_path": f"{folder}/memory"},
            "disk": {"disk_path": f"{folder}/disk", "memory_mib": 0},
        }
        with redis_server(folder) as url:
            if url:
                tiers["shared"] = {"disk_path": "off", "memory_mib": 0, "redis_url": url, "redis_timeout_ms": 1000}
            for name, store in tiers.items():
                with serve(repository, **store) as server:
                    rows.append({"tier": name, **_measure_hits(server, corpus, options.requests)})
    return rows


def _measure_hits(server: EmbeddedServer, corpus: Corpus, num_requests: int) -> Report:
    """Measure one request, whose chunks are all stored, again and again."""
    passages = corpus.draw(512 * corpus.config.chunk_size)
    lookups, stages, num_chunks = [], [], 0
    with (
        RefragClient(server.grpc_address) as client,
        StoreClient(server.grpc_address) as store,
        StageClock(server) as clock,
    ):
        store.index(passages)
        ask(client, passages, 0.0)
        before = _read_times(clock)
        for _ in range(num_requests):
            statistics_ = ask(client, passages, 0.0).statistics
            assert statistics_.num_stored_chunks == statistics_.num_chunks, "a chunk was not stored"
            num_chunks = statistics_.num_chunks
            after = _read_times(clock)
            lookups.append(after[0] - before[0])
            stages.append(after[1] - before[1])
            before = after
    return {
        "num_chunks": num_chunks,
        "num_requests": num_requests,
        "lookup_ms": round(1e3 * statistics.median(lookups), 2),
        "preprocessing_ms": round(1e3 * statistics.median(stages), 2),
    }


def _read_times(clock: StageClock) -> tuple[float, float]:
    """Return the seconds spent so far in looking up, and in preprocessing as a whole."""
    return clock.read_lookup(), clock.read_model("preprocessing")


def measure_index(repository: Path, corpus: Corpus, options: argparse.Namespace) -> Report:
    """Measure `refrag index` and the encoder alone, in turns."""
    rates: dict[str, list[float]] = {"encoder": [], "index": []}
    encode = RawEncoder(repository, corpus)
    with tempfile.TemporaryDirectory() as folder, serve(repository, disk_path=f"{folder}/store") as server:
        for number in range(options.rounds + 1):
            passages = corpus.draw(options.index_tokens if number else options.index_tokens // 10)
            path = Path(folder, f"corpus-{number}.jsonl")
            path.write_text("".join(json.dumps({"text": passage}) + "\n" for passage in passages))
            encoder_rate, report = encode(passages), _index(server, path)
            # The first round warms up both.
            if number:
                rates["encoder"].append(encoder_rate)
                rates["index"].append(report["vectors_per_second"])
    return {
        "vectors_per_second": {name: round(statistics.median(values)) for name, values in rates.items()},
        "index_against_encoder": median_ratio(rates["index"], rates["encoder"]),
        "num_vectors": report["num_encoded"],
        "bytes_per_vector": report["num_bytes"] // report["num_encoded"],
    }


class RawEncoder:
    """The exported encoder in ONNX Runtime alone, on all cores."""

    def __init__(self, repository: Path, corpus: Corpus) -> None:
        self.corpus = corpus
        self.session = onnxruntime.InferenceSession(
            str(repository / "chunk_encoder" / "1" / "model.onnx"), providers=["CPUExecutionProvider"]
        )

    def __call__(self, passages: list[str]) -> float:
        """Encode the passages' distinct chunks; return the vectors per second, tokenising not counted."""
        chunks = list(dict.fromkeys(chunk.token_ids for chunk in self.corpus.chunker.context_chunks(passages)))
        ids, mask = self.corpus.chunker.encoder_inputs([Chunk(token_ids, passage=0) for token_ids in chunks])
        start = time.perf_counter()
        for first in range(0, len(ids), ENCODER_ROWS):
            part = slice(first, first + ENCODER_ROWS)
            self.session.run(None, {"input_ids": ids[part], "attention_mask": mask[part]})
        return len(ids) / (time.perf_counter() - start)


def _index(server: EmbeddedServer, corpus: Path) -> Report:
    command = [sys.executable, "-m", "refrag_client.cli.main", "index", str(corpus), "--json"]
    done = subprocess.run([*command, "--url", server.grpc_address], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@contextmanager
def redis_server(folder: str) -> Iterator[str | None]:
    """Run a Redis server; yield its URL, or None where Redis is not installed."""
    if shutil.which("redis-server") is None:
        yield None
        return
    socket = Path(folder, "redis.sock")
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", folder]
    process = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
    try:
        while not socket.exists():
            assert process.poll() is None, "redis-server did not start"
            time.sleep(0.05)
        yield f"unix://{socket}"
    finally:
        process.terminate()
        process.wait()


def markdown(report: Report) -> str:
    """Return a table and a line, with machine, commit and command."""
    about = f"`make bench-store` on {report['machine']}, commit {report['commit']}."
    return f"{_lookup_table(report)}\n\n{_index_line(report)}\n{about}"


def _lookup_table(report: Report) -> str:
    header = ["vectors found in", "chunks", "lookup", "preprocessing in all"]
    return table(
        header,
        [
            [row["tier"], row["num_chunks"], f"{row['lookup_ms']:.1f} ms", f"{row['preprocessing_ms']:.1f} ms"]
            for row in report["lookup"]
        ],
    )


def _index_line(report: Report) -> str:
    rates = report["index"]["vectors_per_second"]
    return (
        f"`refrag index`: {rates['index']:,} vectors/s, the encoder alone {rates['encoder']:,}, "
        f"{100 * report['index']['index_against_encoder']:.1f}% of it; "
        f"{report['index']['bytes_per_vector']} bytes a vector."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/world"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=15, help="of each tier's lookups")
    parser.add_argument("--index-tokens", type=int, default=300_000, help="of each round's corpus")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder, "repository")
        export_repository(options.checkpoint, repository)
        corpus = Corpus(repository)
        report = {
            **describe_run("perf.store"),
            "rounds": options.rounds,
            "lookup": measure_lookup(repository, corpus, options),
            "index": measure_index(repository, corpus, options),
        }
    emit(report, markdown, options.output)


if __name__ == "__main__":
    main()
