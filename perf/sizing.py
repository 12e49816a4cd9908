"""Computes the size of a store of chunk vectors against that of a store of KV caches, from measured entries.

    python -m perf.sizing --output perf/results/sizing.json

The bytes of an entry are measured by storing vectors of that width: they are what the disk tier takes, with keys,
checksums and the empty ends of pages. All other figures follow from the geometry. The last line of the output is the
report as one JSON object.
"""

import argparse
import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perf.results import Report, describe_run, emit
from refrag.reporting import table
from refrag.store.tiers.disk import DiskTier
from refrag.store.values import seal

NUM_MEASURED, BATCH = 20_000, 1000
CHUNK_SIZE = 16
NUMBER_BYTES = 4
MILLION, PASSAGE_TOKENS = 1_000_000, 128
# The number of passages that the paper retrieves from.
PAPER_PASSAGES = 400 * MILLION
FP16_BYTES = 2


@dataclass(frozen=True)
class Geometry:
    """The sizes of an encoder and a decoder; `kv_width` is a layer's width of keys, or of values, over all heads."""

    name: str
    encoder_width: int
    num_layers: int
    kv_width: int

    @property
    def vector_bytes(self) -> int:
        return FP16_BYTES * self.encoder_width

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * FP16_BYTES * self.num_layers * self.kv_width


GEOMETRIES = (
    Geometry("the tests' small pair", 192, 4, 192),
    Geometry("MiniLM, SmolLM2-135M", 576, 30, 3 * 64),
    Geometry("RoBERTa-base, LLaMA-3.1-8B", 768, 32, 8 * 128),
    Geometry("RoBERTa-large, LLaMA-2-7B", 1024, 32, 32 * 128),
)


def measure_entry_bytes(value_bytes: int) -> float:
    """Return the bytes that the disk tier takes for one value of `value_bytes` bytes."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        tier = DiskTier(Path(folder), 2**30)
        for start in range(0, NUM_MEASURED, BATCH):
            keys = [hashlib.blake2b(str(n).encode(), digest_size=32).digest() for n in range(start, start + BATCH)]
            tier.put({key: seal(key, rng.bytes(value_bytes)) for key in keys})
        num_bytes = tier.usage().num_bytes
        tier.close()
    return num_bytes / NUM_MEASURED


def passage_entry_bytes() -> int:
    """Return the bytes of a passage's tokens as `refrag.store.forms.TokenForm` has them."""
    return NUMBER_BYTES * (1 + PASSAGE_TOKENS + 2 * PASSAGE_TOKENS // CHUNK_SIZE)


def measure() -> Report:
    rows = [
        {
            "pair": geometry.name,
            "vector_bytes": geometry.vector_bytes,
            "entry_bytes": round(measure_entry_bytes(geometry.vector_bytes), 1),
            "kv_bytes_per_token": geometry.kv_bytes_per_token,
        }
        for geometry in GEOMETRIES
    ]
    return {
        **describe_run("perf.sizing"),
        "chunk_size": CHUNK_SIZE,
        "passage_tokens": PASSAGE_TOKENS,
        "num_measured": NUM_MEASURED,
        "rows": rows,
        "token_entry_bytes": round(measure_entry_bytes(passage_entry_bytes()), 1),
    }


def markdown(report: Report) -> str:
    """Return both tables, and what they hold for."""
    tokens = report["token_entry_bytes"]
    about = (
        f"Chunks of k = {report['chunk_size']} tokens, passages of {report['passage_tokens']}, vectors and KV caches "
        f"in FP16. An entry is what the disk tier takes for a vector, measured over {report['num_measured']:,} of "
        "them, keys, checksums and the empty ends of pages included; the rest is arithmetic."
    )
    beside = (
        f"Beside the vectors lie the tokens of each passage, {NUMBER_BYTES} bytes each, and the characters of each "
        f"chunk in {2 * NUMBER_BYTES} bytes: an entry of {tokens:,.0f} B, "
        f"{tokens / report['passage_tokens']:.0f} B per token, whatever the encoder."
    )
    source = f"`{report['command']}`, commit {report['commit']}."
    return "\n\n".join([about, _per_token(report), _per_corpus(report), beside, source])


def _per_token(report: Report) -> str:
    header = ["encoder, decoder", "vector", "entry", "entry per token", "KV cache per token", "KV cache / entry"]
    rows = []
    for row in report["rows"]:
        per_token, kv_bytes = row["entry_bytes"] / report["chunk_size"], row["kv_bytes_per_token"]
        sizes = [row["vector_bytes"], row["entry_bytes"], per_token, kv_bytes]
        rows.append([row["pair"], *(f"{size:,.0f} B" for size in sizes), f"{kv_bytes / per_token:,.0f}×"])
    return table(header, rows)


def _per_corpus(report: Report) -> str:
    header = [
        "encoder, decoder",
        "vectors of a million passages",
        "their KV caches",
        "vectors of 400 million",
        "their KV caches",
    ]
    rows = []
    for row in report["rows"]:
        cells = [row["pair"]]
        for num_passages in (MILLION, PAPER_PASSAGES):
            num_tokens = num_passages * report["passage_tokens"]
            cells += [_size(row["entry_bytes"] * num_tokens / report["chunk_size"])]
            cells += [_size(row["kv_bytes_per_token"] * num_tokens)]
        rows.append(cells)
    return table(header, rows)


def _size(num_bytes: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes / 1e6:,.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    emit(measure(), markdown, parser.parse_args().output)


if __name__ == "__main__":
    main()
