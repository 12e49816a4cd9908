"""`refrag collections`: look at the server's collections, search one, drop one.

list      what each collection holds
search    the passages that fit a question best
drop      remove a whole collection
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from refrag_client.cli.options import add_actions, add_search_options, connection_options, search_options
from refrag_client.collections import CollectionClient

HELP = "look at the server's collections, search one, drop one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = add_actions(parser, ACTIONS)
    for name in ("search", "drop"):
        actions[name].add_argument("collection", metavar="NAME")
    actions["search"].add_argument("question", metavar="QUESTION")
    add_search_options(actions["search"])


def run(arguments: argparse.Namespace) -> None:
    with CollectionClient(**connection_options(arguments)) as client:
        for line in arguments.action(client, arguments):
            print(json.dumps(line, ensure_ascii=False))


def _list(client: CollectionClient, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    return [asdict(each) for each in client.list()]


def _search(client: CollectionClient, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    found = client.search(arguments.collection, arguments.question, **search_options(arguments))
    return [asdict(each) for each in found]


def _drop(client: CollectionClient, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    client.drop(arguments.collection)
    return [{"dropped": arguments.collection}]


ACTIONS: dict[str, Callable[[CollectionClient, argparse.Namespace], list[dict[str, Any]]]] = {
    "list": _list,
    "search": _search,
    "drop": _drop,
}
