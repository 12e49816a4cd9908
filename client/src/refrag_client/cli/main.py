"""Entry point of `refrag`: runs the command that was asked for, and turns its errors into exit codes.

0 done · 1 it failed, or something that it needs is missing · 2 the request or its files are wrong · 130 interrupted
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from refrag_client.cli.commands import Command, find_offers, load_command, missing_requirement
from refrag_client.errors import InvalidRequest, RefragError

DESCRIPTION = "Serve compressed-context RAG on NVIDIA Triton, ask it, and make what it serves."


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except KeyboardInterrupt as stop:
        return _fail(130, str(stop) or "interrupted")
    except BrokenPipeError:
        # The reader left, as `head` does. Python flushes stdout once more at exit, so give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        # Exceptions of other packages that are meant for the user have an exit_code too; any other is a fault.
        code = getattr(error, "exit_code", None)
        if not isinstance(code, int):
            raise
        return _fail(code, str(error))


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        _answer_without_command(arguments)
    name, *rest = arguments
    offers = find_offers()
    if name not in offers:
        raise InvalidRequest(f"there is no command {name!r}; there are {', '.join(offers)}")
    command = load_command(offers[name])
    try:
        return command.run(_parse(name, command, rest)) or 0
    except ModuleNotFoundError as error:
        requirement = missing_requirement(offers[name][0], command, error.name or "")
        if requirement is None:
            raise
        raise RefragError(f"`refrag {name}` needs the module {error.name}: pip install '{requirement}'") from error


def _parse(name: str, command: Command, arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"refrag {name}", description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_arguments(parser)
    return parser.parse_args(arguments)


def _answer_without_command(arguments: list[str]) -> None:
    """Print the help, the version or what is wrong with `arguments`, and exit."""
    parser = argparse.ArgumentParser(
        prog="refrag",
        usage="refrag COMMAND …",
        description=DESCRIPTION,
        # Only for the help itself, because it imports every command's module.
        epilog=_describe_commands() if {"-h", "--help"}.intersection(arguments) else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"refrag {version('refrag-client')}")
    parser.parse_args(arguments)
    parser.error("name a command; `refrag --help` lists them")


def _describe_commands() -> str:
    lines = []
    for name, offers in find_offers().items():
        try:
            text = load_command(offers).HELP
        except RefragError as error:
            text = f"({error})"
        lines.append(f"  {name:10}{text}")
    return "\n".join(["commands:", *lines, "", "`refrag COMMAND --help` tells what one takes."])


def _fail(code: int, message: str) -> int:
    print(f"refrag: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
