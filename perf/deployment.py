"""Deploys a checkpoint for measuring: exports it with any decoder's window and chunk size, serves it, asks it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from perf.corpus import EXAMPLES, QUESTION
from refrag.config import RefragConfig
from refrag.embedded import EmbeddedServer
from refrag.export.passage_encoder import find_sentence_encoder
from refrag.export.precision import Precision
from refrag.export.repository import export_repository
from refrag.model.whole import whole_checkpoint
from refrag_client import Answer, RefragClient

ROOT = Path(__file__).parents[1]
# By the name that reports give a decoder: arguments of `refrag decoders use`. `make vllm` makes vllm's environment.
DECODERS = {
    "torch": ["torch"],
    "int8": ["torch", "--set", "quantization=int8"],
    "vllm": ["vllm", "--folder", str(ROOT / "build" / "decoders" / "vllm")],
}
# Loading all models takes a busy machine minutes.
READY_SECONDS = 600
# A plain prompt of 8,192 tokens takes a decoder of 135 million parameters about a minute on two cores.
LONGEST_ANSWER_SECONDS = 600


def deploy(
    checkpoint: Path,
    folder: Path,
    window: int,
    chunk_size: int | None = None,
    precision: Precision = "fp32",
    has_retrieval: bool = False,
    passage_encoder: Path | None = None,
) -> Path:
    """Export a copy of the checkpoint whose decoder has a window of `window` slots; return the repository in `folder`.

    Answers beyond the window that it was trained with mean nothing, but their times are valid; the same holds for a
    `chunk_size` other than the checkpoint's own. `precision` is that of the exported ONNX models. `has_retrieval` adds
    collections, with the named passage encoder, else with the base model of the checkpoint's encoder if it is one.
    """
    copied, repository = folder / "checkpoint", folder / "repository"
    widen(checkpoint, copied, window, chunk_size)
    # The copy is whole, and names no base model.
    encoder = find_sentence_encoder(checkpoint, passage_encoder) if has_retrieval else None
    export_repository(
        copied,
        repository,
        precision,
        calibration=EXAMPLES if precision == "int8" else None,
        has_retrieval=has_retrieval,
        passage_encoder=None if encoder is None else encoder.folder,
    )
    return repository


def widen(checkpoint: Path, target: Path, window: int, chunk_size: int | None = None) -> None:
    with whole_checkpoint(checkpoint) as whole:
        shutil.copytree(whole, target)
    config = RefragConfig.load(target)
    replace(config, max_prompt_slots=window, chunk_size=chunk_size or config.chunk_size).save(target)
    path = target / "decoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": window}))


def use_decoder(repository: Path, name: str, *options: str) -> None:
    """Name the decoder in the repository, by `refrag decoders use` with these options."""
    program = [sys.executable, "-m", "refrag_client.cli.main", "decoders", "use", name]
    subprocess.run([*program, "--repository", str(repository), *options], stdout=subprocess.DEVNULL, check=True)


@contextmanager
def serve(repository: Path, collections: Path | None = None, /, **store: object) -> Iterator[EmbeddedServer]:
    """Serve on free ports; `store` holds variables of refrag.store.settings by name, without their prefix.

    collections: folder of collections, for a repository that has them.
    """
    variables = {f"REFRAG_STORE_{name.upper()}": str(value) for name, value in store.items()}
    if collections is not None:
        variables["REFRAG_COLLECTIONS_PATH"] = str(collections)
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    # Without probes, which would be measured too.
    with EmbeddedServer(
        repository, **ports, probe_seconds=0, environment=variables, ready_timeout_seconds=READY_SECONDS
    ) as server:
        yield server


@contextmanager
def serve_decoder(name: str, repository: Path, folder: Path) -> Iterator[EmbeddedServer]:
    """Serve a copy of the repository, in `folder`, by one of DECODERS, with a store of its own."""
    copied = folder / name
    shutil.copytree(repository, copied)
    use_decoder(copied, *DECODERS[name])
    with serve(copied, disk_path=folder / f"{name}-store") as server:
        yield server


def decoder_suffix(name: str) -> str:
    """Return what stands in tables behind the name of a way or a load by this one of DECODERS."""
    return "" if name == "torch" else f", {name}"


def connect(server: EmbeddedServer) -> RefragClient:
    """Return a client that waits for the longest answers."""
    return RefragClient(server.grpc_address, timeout_seconds=LONGEST_ANSWER_SECONDS)


def ask(client: RefragClient, passages: Sequence[str], expand_fraction: float, max_tokens: int = 1) -> Answer:
    """Ask for an answer of exactly `max_tokens` tokens; one that ended at once would have no first token."""
    return client.generate(
        QUESTION,
        passages,
        expand_fraction=expand_fraction,
        max_tokens=max_tokens,
        min_tokens=max_tokens,
        deadline_ms=1000 * LONGEST_ANSWER_SECONDS,
    )
