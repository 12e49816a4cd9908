"""`refrag store`: look into the server's store of chunk vectors, check it, clear it.

stats    what each tier holds
verify   delete values that are damaged
prune    delete vectors of encoders that no server has had for a day
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from refrag_client.cli.options import add_actions, add_store_model_option, connection_options
from refrag_client.errors import InvalidRequest
from refrag_client.store import Deletions, StoreClient, StoreReport

HELP = "look into the store of chunk vectors, check it, clear it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = add_actions(parser, ACTIONS)
    for action in actions.values():
        add_store_model_option(action)
    for name in ("verify", "prune"):
        actions[name].add_argument("--tier", help="disk or shared (default: each that there is)")
    actions["prune"].add_argument("--keep", action="append", default=[], metavar="FINGERPRINT", help="may be repeated")


def run(arguments: argparse.Namespace) -> None:
    with StoreClient(model=arguments.model, **connection_options(arguments)) as client:
        print(json.dumps(arguments.action(client, arguments)))


def _stats(client: StoreClient, arguments: argparse.Namespace) -> dict[str, Any]:
    return asdict(client.stats())


def _verify(client: StoreClient, arguments: argparse.Namespace) -> dict[str, Any]:
    return {tier: _total(tier, client.verify(tier)) for tier in _tiers(client.stats(), arguments.tier)}


def _prune(client: StoreClient, arguments: argparse.Namespace) -> dict[str, Any]:
    return {tier: _total(tier, client.prune(tier, arguments.keep)) for tier in _tiers(client.stats(), arguments.tier)}


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
}
