"""The commands that installed packages offer `refrag`: entry points of the group `refrag.commands`, each a module.

    HELP                      its line in `refrag --help`; its docstring is its description
    add_arguments(parser)     its options
    run(arguments)            its work; returns the exit code, or None for 0
    EXTRA                     optional: the extra of its package that brings what these two import

A module is imported to show its HELP too, so heavy imports belong into the two functions. An exception that has an
`exit_code` is told in one line; any other one is a fault, and shows its traceback.
"""

import argparse
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, cast

from refrag_client.errors import RefragError

GROUP = "refrag.commands"


class Command(Protocol):
    __doc__: str | None
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int | None: ...


def find_offers() -> dict[str, list[EntryPoint]]:
    """Who offers which command; nothing is imported yet."""
    offers: dict[str, list[EntryPoint]] = {}
    for offer in sorted(entry_points(group=GROUP), key=lambda offer: (offer.name, offer.value)):
        offers.setdefault(offer.name, []).append(offer)
    return offers


def load_command(offers: list[EntryPoint]) -> Command:
    """Import the one that offers it; RefragError if there are several, or if it is no command."""
    offer, *others = offers
    if others:
        packages = " and ".join(_package(each) for each in offers)
        raise RefragError(f"the packages {packages} both offer the command {offer.name!r}; uninstall one of them")
    try:
        command = offer.load()
    except Exception as error:
        raise RefragError(
            f"the command {offer.name!r} of {_package(offer)} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    lacking = [name for name in ("HELP", "add_arguments", "run") if not hasattr(command, name)]
    if lacking:
        raise RefragError(f"the command {offer.name!r} of {_package(offer)} lacks {', '.join(lacking)}")
    return cast(Command, command)


def missing_requirement(offer: EntryPoint, command: Command, missing_module: str) -> str | None:
    """What to install so that the command finds the module; None if that is its package's own fault."""
    extra = getattr(command, "EXTRA", None)
    is_own = missing_module.partition(".")[0] == offer.module.partition(".")[0]
    return None if extra is None or is_own else f"{_package(offer)}[{extra}]"


def _package(offer: EntryPoint) -> str:
    return offer.dist.name if offer.dist else offer.module
