"""`refrag check`: list what the embedded server needs of this machine, and what to do about each item that is missing.

It takes the options of `refrag serve`, and exits with 1 if the server could not start with those options. With
--server it asks a running server a tiny question instead, and exits with 1 if that neither answers nor is only busy.
"""

import argparse
import time

from refrag.embedded.probe import ask_server
from refrag.embedded.requirements import Machine, check_machine
from refrag.embedded.settings import ServerSettings, add_options, settings_from_arguments
from refrag.errors import InvalidRequest

HELP = "tell what this machine lacks to serve"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser)
    parser.add_argument(
        "--server",
        nargs="?",
        const="127.0.0.1:8000",
        metavar="HOST:PORT",
        help="ask the server at this HTTP address (default: %(const)s); the other options then count for nothing",
    )


def run(arguments: argparse.Namespace) -> int:
    return _check_machine(arguments) if arguments.server is None else _check_server(arguments.server)


def _check_server(address: str) -> int:
    began = time.monotonic()
    finding = ask_server(address)
    seconds = time.monotonic() - began
    # A server that is restarted, or taken out, for being busy would leave others with more.
    told = {
        "answered": f"ok       {address} answered after {seconds:.2f} s",
        "busy": f"busy     {address} serves others, and had not answered after {seconds:.2f} s",
    }
    print(told[finding])
    return 0


def _check_machine(arguments: argparse.Namespace) -> int:
    settings = parsed_settings(arguments)
    findings = check_machine(Machine.inspect(settings), settings)
    for finding in findings:
        mark = "problem" if finding.problem else "ok"
        print(f"{mark:8} {finding.name:17} {finding.problem or finding.found}")
    return 1 if any(finding.problem for finding in findings) else 0


def parsed_settings(arguments: argparse.Namespace) -> ServerSettings:
    """Return the server's settings in `arguments`; raise InvalidRequest if they contradict each other."""
    try:
        return settings_from_arguments(arguments)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
