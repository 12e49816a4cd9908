"""The commands of `refrag`: modules that installed packages name as entry points of the group `refrag.commands`.

    __doc__                   the description in `refrag COMMAND --help`
    HELP                      the line in `refrag --help`
    add_arguments(parser)     adds the options
    run(arguments)            does the work; returns the exit code, or None for 0
    EXTRA                     optional: the extra of the package that installs what the two functions import

`refrag --help` imports every command's module, so heavy imports belong inside the two functions. An exception that has
an `exit_code` is shown in one line, and so is one of the system; any other is a fault, whose traceback goes to a file.
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
    """Return the entry points that offer each command, by its name; import none of them."""
    offers: dict[str, list[EntryPoint]] = {}
    for offer in sorted(entry_points(group=GROUP), key=lambda offer: (offer.name, offer.value)):
        offers.setdefault(offer.name, []).append(offer)
    return offers


def load_command(offers: list[EntryPoint]) -> Command:
    """Import the command's module; raise RefragError if several packages offer it or it is no command."""
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
    """Return the requirement to install for a module that the command lacks, or None if no extra brings it.

    A module of the command's own package is such a case: it is missing by a fault of that package.
    """
    extra = getattr(command, "EXTRA", None)
    is_own = missing_module.partition(".")[0] == offer.module.partition(".")[0]
    return None if extra is None or is_own else f"{_package(offer)}[{extra}]"


def _package(offer: EntryPoint) -> str:
    return offer.dist.name if offer.dist else offer.module
