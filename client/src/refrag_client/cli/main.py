"""Entry point of `refrag`: runs the command that was asked for, and turns its errors into exit codes.

0 done · 1 it failed, or something that it needs is missing · 2 the request or its files are wrong · 130 interrupted
"""

import argparse
import contextlib
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from importlib.metadata import version

from refrag_client.cli.commands import Command, find_offers, load_command, missing_requirement
from refrag_client.errors import InvalidRequest, RefragError

DESCRIPTION = "Serve compressed-context RAG on NVIDIA Triton, ask it, and make what it serves."


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _run(arguments)
        finally:
            # Here and not at the interpreter's end, where it is too late to tell that the disk is full.
            _flush()
    except KeyboardInterrupt as stop:
        return _fail(130, str(stop) or "interrupted")
    except BrokenPipeError:
        # The reader left, as `head` does.
        _give_up_output()
        return 1
    except Exception as error:
        return _fail(*_explain(error))


def _explain(error: Exception) -> tuple[int, str]:
    """Return the exit code of an error and what to tell about it, which is never a traceback."""
    # Exceptions of other packages that are meant for the user have an exit_code too.
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return code, str(error)
    if isinstance(error, OSError) and error.strerror:
        places = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return 1, ": ".join([*places, error.strerror])
    return 1, f"{type(error).__name__}: {error}; this is a fault of the command{_keep_traceback(error)}"


def _keep_traceback(error: Exception) -> str:
    """Write the traceback to a file of its own, and return where it is; nothing if it cannot be written."""
    with contextlib.suppress(OSError):
        with tempfile.NamedTemporaryFile("w", prefix="refrag-fault-", suffix=".log", delete=False) as file:
            traceback.print_exception(error, file=file)
        return f", please report it with {file.name}"
    return ""


def _flush() -> None:
    if sys.stdout is None:  # closed by the caller, as with `>&-`
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _give_up_output()
        raise OSError(error.errno, error.strerror, "standard output") from None


def _give_up_output() -> None:
    # Python flushes it once more at its end, so give it somewhere to go.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    lines, every = [], find_offers()
    width = max(map(len, every), default=0) + 2
    for name, offers in every.items():
        try:
            text = load_command(offers).HELP
        except RefragError as error:
            text = f"({error})"
        lines.append(f"  {name:{width}}{text}")
    return "\n".join(["commands:", *lines, "", "`refrag COMMAND --help` tells what one takes."])


def _fail(code: int, message: str) -> int:
    with contextlib.suppress(OSError):
        print(f"refrag: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
