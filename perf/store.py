"""What the store of chunk vectors saves, and what it costs: through the real server, on a checkpoint's exported graph.

    make bench-store        or: python -m perf.store --output perf/results/store.json

Everything is measured in one run, so that ratios hold on a noisy machine:

    lookup       the store's share of a request of 512 chunks that are all stored, and the whole stage that it is part
                 of (preprocessing: tokenising, chunking, looking up), both by the server's own clock; one request at a
                 time; medians, for each tier as the only one that has the vectors
    index        vectors per second of `refrag index` into an empty store against ONNX Runtime alone with the same graph
                 and the same chunks, tokenised before; in turns; median of ratios
    TTFT         client side, over gRPC, of 8,192 context tokens with nothing expanded: the plain decoder (everything
                 expanded), with an empty store, with a warm one; in turns; median and ratios within a round

The demo checkpoint's window is 4,096 slots, too few for the plain decoder. The benchmark serves a copy with a wider
window: its answers mean nothing beyond 4,096, its times are what they would be.

The last line of the output is the report as one JSON object.
"""

import argparse
import json
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
from tritonclient.grpc import InferenceServerClient

from export.repository import export_repository
from refrag.chunking import Chunk, Chunker
from refrag.config import RefragConfig
from refrag.embedded import EmbeddedServer
from refrag.environment import describe_environment
from refrag.model.tokenizers import load_decoder_tokenizer
from refrag_client import Answer, RefragClient, StoreClient
from refrag_client.cli.passages import read_passages

EXAMPLES = Path(__file__).resolve().parents[1] / "client" / "examples" / "passages.jsonl"
PASSAGE_WORDS = 50
CONTEXT_TOKENS = 8192
WINDOW = 16384
# A metric is told once a second.
METRIC_SECONDS = 1.2
ENCODER_ROWS = 256
QUESTION = "Who keeps the lighthouse?"

Report = dict[str, Any]


class Corpus:
    """Passages of the words of the client's examples in random order: no two chunks are alike."""

    def __init__(self, repository: Path) -> None:
        deployed = repository / "preprocessing" / "1" / "checkpoint"
        self.config = RefragConfig.load(deployed)
        self.chunker = Chunker(self.config, load_decoder_tokenizer(deployed))
        self.words = sorted({word for passage in read_passages(str(EXAMPLES)) for word in passage.split()})
        self.rng = random.Random(0)

    def draw(self, num_tokens: int) -> list[str]:
        """Passages of `num_tokens` context tokens together, or a few more."""
        passages: list[str] = []
        total = 0
        while total < num_tokens:
            passages.append(" ".join(self.rng.choices(self.words, k=PASSAGE_WORDS)))
            total += len(self.chunker.passage_ids(passages[-1]))
        return passages


@contextmanager
def serve(repository: Path, **store: object) -> Iterator[EmbeddedServer]:
    variables = {f"REFRAG_STORE_{name.upper()}": str(value) for name, value in store.items()}
    with EmbeddedServer(repository, http_port=0, grpc_port=0, metrics_port=0, environment=variables) as server:
        yield server


def measure_lookup(repository: Path, corpus: Corpus, options: argparse.Namespace) -> list[Report]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tiers: dict[str, dict[str, object]] = {
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
    """Of one request again and again, whose chunks are all stored."""
    passages = corpus.draw(512 * corpus.config.chunk_size)
    lookups, stages, num_chunks = [], [], 0
    with (
        RefragClient(server.grpc_address) as client,
        StoreClient(server.grpc_address) as store,
        InferenceServerClient(server.grpc_address) as triton,
    ):
        store.index(passages)
        ask(client, passages, 0.0)
        before = _read_times(server, triton)
        for _ in range(num_requests):
            statistics_ = ask(client, passages, 0.0).statistics
            assert statistics_.num_stored_chunks == statistics_.num_chunks, "a chunk was not stored"
            num_chunks = statistics_.num_chunks
            after = _read_times(server, triton)
            lookups.append(after[0] - before[0])
            stages.append(after[1] - before[1])
            before = after
    return {
        "num_chunks": num_chunks,
        "num_requests": num_requests,
        "lookup_ms": round(1e3 * statistics.median(lookups), 2),
        "preprocessing_ms": round(1e3 * statistics.median(stages), 2),
    }


def _read_times(server: EmbeddedServer, triton: Any) -> tuple[float, float]:
    """Seconds spent so far in looking up, and in preprocessing as a whole."""
    time.sleep(METRIC_SECONDS)
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=30) as response:
        text = response.read().decode()
    found = re.search(r'^refrag_store_lookup_seconds_sum\{model="preprocessing"\} (\S+)$', text, re.MULTILINE)
    assert found, "the server does not tell how long it looks up"
    told = triton.get_inference_statistics("preprocessing", as_json=True)
    return float(found[1]), int(told["model_stats"][0]["inference_stats"]["compute_infer"]["ns"]) / 1e9


def measure_index(repository: Path, corpus: Corpus, options: argparse.Namespace) -> Report:
    """Rounds of both, in turns."""
    rates: dict[str, list[float]] = {"encoder": [], "index": []}
    encode = RawEncoder(repository, corpus)
    with tempfile.TemporaryDirectory() as folder, serve(repository, disk_path=f"{folder}/store") as server:
        for number in range(options.rounds + 1):
            passages = corpus.draw(options.index_tokens if number else options.index_tokens // 10)
            path = Path(folder, f"corpus-{number}.jsonl")
            path.write_text("".join(json.dumps({"text": passage}) + "\n" for passage in passages))
            encoder_rate, report = encode(passages), _index(server, path)
            # The first round warms both up.
            if number:
                rates["encoder"].append(encoder_rate)
                rates["index"].append(report["vectors_per_second"])
    return {
        "vectors_per_second": {name: round(statistics.median(values)) for name, values in rates.items()},
        "index_against_encoder": round(
            statistics.median(mine / raw for mine, raw in zip(rates["index"], rates["encoder"], strict=True)), 3
        ),
        "num_vectors": report["num_encoded"],
        "bytes_per_vector": report["num_bytes"] // report["num_encoded"],
    }


class RawEncoder:
    """The exported graph in ONNX Runtime with all cores, and nothing besides."""

    def __init__(self, repository: Path, corpus: Corpus) -> None:
        self.corpus = corpus
        self.session = onnxruntime.InferenceSession(
            str(repository / "chunk_encoder" / "1" / "model.onnx"), providers=["CPUExecutionProvider"]
        )

    def __call__(self, passages: list[str]) -> float:
        """Vectors per second."""
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


def measure_ttft(repository: Path, corpus: Corpus, options: argparse.Namespace) -> Report:
    """Each round asks about passages of its own: plain, then compressed with nothing stored, then again."""
    seconds: dict[str, list[float]] = {"plain": [], "cold": [], "warm": []}
    slots: dict[str, int] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(repository, disk_path=f"{folder}/store") as server,
        RefragClient(server.grpc_address) as client,
    ):
        for number in range(options.rounds + 1):
            for way, answer in _ask_in_turn(client, corpus):
                slots[way] = answer.statistics.prompt_slots
                if number:
                    seconds[way].append(answer.ttft_seconds or 0.0)
    return {
        "context_tokens": CONTEXT_TOKENS,
        "chunk_size": corpus.config.chunk_size,
        "prompt_slots": slots,
        "ttft_ms": {way: round(1e3 * statistics.median(values), 1) for way, values in seconds.items()},
        "plain_against": {
            way: round(statistics.median(p / c for p, c in zip(seconds["plain"], seconds[way], strict=True)), 2)
            for way in ("cold", "warm")
        },
    }


def _ask_in_turn(client: RefragClient, corpus: Corpus) -> Iterator[tuple[str, Answer]]:
    """Other passages for the plain decoder: its own vectors would be found by the next."""
    yield "plain", ask(client, corpus.draw(CONTEXT_TOKENS), 1.0)
    passages = corpus.draw(CONTEXT_TOKENS)
    cold = ask(client, passages, 0.0)
    assert cold.statistics.num_stored_chunks < 0.2 * cold.statistics.num_chunks, "the cold store was not cold"
    yield "cold", cold
    # What is new is stored after the answer; and blocks of the KV cache are found again if the question is the same.
    time.sleep(METRIC_SECONDS)
    warm = ask(client, list(reversed(passages)), 0.0)
    assert warm.statistics.num_stored_chunks == warm.statistics.num_chunks, "the warm store was not warm"
    yield "warm", warm


def ask(client: RefragClient, passages: list[str], expand_fraction: float) -> Answer:
    return client.generate(QUESTION, passages, expand_fraction=expand_fraction, max_tokens=1)


def widen(checkpoint: Path, target: Path) -> Path:
    """A copy whose window is WINDOW slots."""
    shutil.copytree(checkpoint, target)
    replace(RefragConfig.load(checkpoint), max_prompt_slots=WINDOW).save(target)
    path = target / "decoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": WINDOW}))
    return target


@contextmanager
def redis_server(folder: str) -> Iterator[str | None]:
    """Its URL, or None where Redis is not installed."""
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
    """For people: both tables and a line, with machine, commit and command."""
    about = f"`make bench-store` on {report['machine']}, commit {report['commit']}."
    return "\n\n".join([_lookup_table(report), _ttft_table(report), f"{_index_line(report)}\n{about}"])


def _lookup_table(report: Report) -> str:
    lines = ["| vectors found in | chunks | lookup | preprocessing in all |", "| --- | ---: | ---: | ---: |"]
    for row in report["lookup"]:
        lines.append(
            f"| {row['tier']} | {row['num_chunks']} | {row['lookup_ms']:.1f} ms | {row['preprocessing_ms']:.1f} ms |"
        )
    return "\n".join(lines)


def _ttft_table(report: Report) -> str:
    ttft = report["ttft"]
    lines = [
        f"| {ttft['context_tokens']} context tokens | prompt slots | first token | plain against it |",
        "| --- | ---: | ---: | ---: |",
        f"| plain decoder | {ttft['prompt_slots']['plain']} | {ttft['ttft_ms']['plain']:.0f} ms | |",
    ]
    for way, title in (("cold", "compressed, nothing stored"), ("warm", "compressed, all stored")):
        lines.append(
            f"| {title} | {ttft['prompt_slots'][way]} | {ttft['ttft_ms'][way]:.0f} ms "
            f"| {ttft['plain_against'][way]:.1f}× |"
        )
    return "\n".join(lines)


def _index_line(report: Report) -> str:
    rates = report["index"]["vectors_per_second"]
    return (
        f"`refrag index`: {rates['index']:,} vectors/s, the encoder alone {rates['encoder']:,}, "
        f"{100 * report['index']['index_against_encoder']:.0f}% of it; "
        f"{report['index']['bytes_per_vector']} bytes a vector."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/demo"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=15, help="of each tier's lookups")
    parser.add_argument("--index-tokens", type=int, default=300_000, help="of each round's corpus")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder, "repository")
        export_repository(widen(options.checkpoint, Path(folder, "checkpoint")), repository)
        corpus = Corpus(repository)
        report = {
            "command": " ".join(["python -m perf.store", *sys.argv[1:]]),
            **describe_environment(),
            "rounds": options.rounds,
            "lookup": measure_lookup(repository, corpus, options),
            "index": measure_index(repository, corpus, options),
            "ttft": measure_ttft(repository, corpus, options),
        }
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(markdown(report), end="\n\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
