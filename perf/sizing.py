"""How large a store of chunk vectors is, against a store of KV caches: measured entries, and arithmetic on them.

    python -m perf.sizing > refrag/store/SIZING.md

Bytes of an entry are those that the disk tier takes for it, keys, checksums and the pages' empty ends included, found
by storing vectors of that width. All else follows from the geometry.
"""

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refrag.store.tiers.disk import DiskTier
from refrag.store.values import seal

NUM_MEASURED, BATCH = 20_000, 1000
CHUNK_SIZE = 16
TOKEN_BYTES = 4
MILLION, PASSAGE_TOKENS = 1_000_000, 128
# The paper retrieves from 400 million passages.
PAPER_PASSAGES = 400 * MILLION
FP16_BYTES = 2

HEAD = f"""# How large is a store?

Chunks of k = {CHUNK_SIZE} tokens, passages of {PASSAGE_TOKENS}, vectors and KV caches in FP16. An entry is what the
disk tier takes for a vector, measured over {NUM_MEASURED:,} of them, keys, checksums and the empty ends of pages
included; the rest is arithmetic. `python -m perf.sizing` writes this page."""
FOOT = f"""LMDB keeps a value of more than about 2 kB on pages of its own, of 4,096 bytes each: vectors of 1,024 numbers
take twice their size on disk. Chunks of another size cost in proportion: k = 8 doubles the vectors, k = 32 halves them.

At {PASSAGE_TOKENS} tokens a passage, the vectors of what the paper retrieves from, 400 million passages, fit on a few
machines' disks; their KV caches are no store that anyone would run. Nor need a corpus be stored whole: what is asked
for is stored as it is asked for, and the oldest goes when the limit is reached."""


@dataclass(frozen=True)
class Geometry:
    """kv_width: of keys and of values, over all heads, in each layer of the decoder."""

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
    Geometry("demo checkpoint", 192, 4, 192),
    Geometry("RoBERTa-base, LLaMA-3.1-8B", 768, 32, 8 * 128),
    Geometry("RoBERTa-large, LLaMA-2-7B", 1024, 32, 32 * 128),
)


def measure_entry_bytes(value_bytes: int) -> float:
    """Bytes that the disk tier takes for one value of that length."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        tier = DiskTier(Path(folder), 2**30)
        for start in range(0, NUM_MEASURED, BATCH):
            keys = [hashlib.blake2b(str(n).encode(), digest_size=32).digest() for n in range(start, start + BATCH)]
            tier.put({key: seal(key, rng.bytes(value_bytes)) for key in keys})
        num_bytes = tier.usage().num_bytes
        tier.close()
    return num_bytes / NUM_MEASURED


def render() -> str:
    entries = {geometry: measure_entry_bytes(geometry.vector_bytes) for geometry in GEOMETRIES}
    return "\n\n".join([HEAD, _per_token(entries), _per_corpus(entries), _tokens(), FOOT])


def _per_token(entries: Mapping[Geometry, float]) -> str:
    lines = [
        "| encoder, decoder | vector | entry | entry per token | KV cache per token | KV cache / entry |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for geometry, entry in entries.items():
        per_token = entry / CHUNK_SIZE
        lines.append(
            f"| {geometry.name} | {geometry.vector_bytes:,} B | {entry:,.0f} B | {per_token:,.0f} B "
            f"| {geometry.kv_bytes_per_token:,} B | {geometry.kv_bytes_per_token / per_token:,.0f}× |"
        )
    return "\n".join(lines)


def _per_corpus(entries: Mapping[Geometry, float]) -> str:
    lines = [
        "| encoder, decoder | vectors of a million passages | their KV caches | vectors of 400 million | KV caches |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for geometry, entry in entries.items():
        cells = [geometry.name]
        for num_passages in (MILLION, PAPER_PASSAGES):
            num_tokens = num_passages * PASSAGE_TOKENS
            cells += [_size(entry * num_tokens / CHUNK_SIZE), _size(geometry.kv_bytes_per_token * num_tokens)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _tokens() -> str:
    entry = measure_entry_bytes(TOKEN_BYTES * PASSAGE_TOKENS)
    return (
        f"Beside the vectors lie the tokens of each passage, {TOKEN_BYTES} bytes each: an entry of {entry:,.0f} B, "
        f"{entry / PASSAGE_TOKENS:.0f} B\nper token, whatever the encoder."
    )


def _size(num_bytes: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes / 1e6:,.0f} MB"


def main() -> None:
    print(render())


if __name__ == "__main__":
    main()
