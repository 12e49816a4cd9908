"""`refrag store`: look into the server's store of chunk vectors, check it, clear it, copy it.

stats    what each tier holds
verify   delete values that are damaged
prune    delete vectors of encoders that no server has had for a day
export   the vectors of the server's encoder into a file
import   such a file into the store of a server with the same encoder
"""

import argparse
import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from refrag_client.cli.options import add_connection_options
from refrag_client.errors import InvalidRequest
from refrag_client.store import Deletions, StoreClient, StoreReport, VectorPage

HELP = "look into the store of chunk vectors, check it, clear it, copy it"

MANIFEST = "manifest.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for name, action in ACTIONS.items():
        sub = actions.add_parser(name)
        sub.set_defaults(action=action)
        if name in ("export", "import"):
            sub.add_argument("file", metavar="FILE", type=Path)
        if name in ("verify", "prune", "export"):
            sub.add_argument("--tier", help="disk or shared (default: each that there is; of export the first)")
        if name == "prune":
            sub.add_argument("--keep", action="append", default=[], metavar="FINGERPRINT", help="may be repeated")
        add_connection_options(sub, timeout_seconds=600.0)


def run(arguments: argparse.Namespace) -> None:
    with StoreClient(arguments.url, timeout_seconds=arguments.timeout_seconds) as client:
        print(json.dumps(arguments.action(client, arguments)))


def _stats(client: StoreClient, arguments: argparse.Namespace) -> dict[str, Any]:
    return asdict(client.stats())


def _verify(client: StoreClient, arguments: argparse.Namespace) -> dict[str, Any]:
    return {tier: _total(tier, client.verify(tier)) for tier in _tiers(client.stats(), arguments.tier)}


def _prune(client: StoreClient, arguments: argparse.Namespace) -> dict[str, Any]:
    return {tier: _total(tier, client.prune(tier, arguments.keep)) for tier in _tiers(client.stats(), arguments.tier)}


def _export(client: StoreClient, arguments: argparse.Namespace) -> dict[str, Any]:
    """Pages in an uncompressed archive: vectors are as good as random, and a reader needs one page at a time."""
    report = client.stats()
    num_vectors, unfinished = 0, arguments.file.with_name(arguments.file.name + ".part")
    with zipfile.ZipFile(unfinished, "w") as archive:
        manifest = {"fingerprint": report.fingerprint, "chunk_size": report.chunk_size}
        archive.writestr(MANIFEST, json.dumps(manifest))
        pages = tqdm(client.read(_tiers(report, arguments.tier)[0]), unit=" pages", file=sys.stderr)
        for number, page in enumerate(pages):
            _save(archive, f"{number:08d}.digests.npy", page.digests)
            _save(archive, f"{number:08d}.vectors.npy", page.vectors)
            num_vectors += len(page.digests)
    unfinished.replace(arguments.file)
    return {"num_exported": num_vectors, **manifest}


def _import(client: StoreClient, arguments: argparse.Namespace) -> dict[str, Any]:
    num_vectors = 0
    for page in tqdm(_read_export(arguments.file), unit=" pages", file=sys.stderr):
        if len(page.digests):
            client.write(page)
        num_vectors += len(page.digests)
    return {"num_imported": num_vectors}


def _read_export(path: Path) -> Iterator[VectorPage]:
    try:
        with zipfile.ZipFile(path) as archive:
            fingerprint = json.loads(archive.read(MANIFEST))["fingerprint"]
            for name in sorted(name for name in archive.namelist() if name.endswith(".digests.npy")):
                vectors = _load(archive, name.replace("digests", "vectors"))
                yield VectorPage(fingerprint, _load(archive, name), vectors)
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise InvalidRequest(
            f"{path} is not an export of a store: {error}; make one with `refrag store export`"
        ) from None


def _save(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    with archive.open(name, "w") as file:
        np.save(file, array)


def _load(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as file:
        array: np.ndarray = np.load(file, allow_pickle=False)
    return array


def _tiers(report: StoreReport, name: str | None) -> list[str]:
    names = [tier.name for tier in report.tiers]
    if not names or (name and name not in names):
        raise InvalidRequest(f"the server's store has no tier {name or 'that lasts'}; it has {names}")
    return [name] if name else names


def _total(tier: str, pages: Iterator[Deletions]) -> dict[str, int]:
    told = list(tqdm(pages, desc=tier, unit=" pages", file=sys.stderr))
    return {name: sum(getattr(page, name) for page in told) for name in ("num_checked", "num_deleted")}


ACTIONS: dict[str, Callable[[StoreClient, argparse.Namespace], dict[str, Any]]] = {
    "stats": _stats,
    "verify": _verify,
    "prune": _prune,
    "export": _export,
    "import": _import,
}
