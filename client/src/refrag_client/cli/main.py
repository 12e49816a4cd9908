"""Entry point of `refrag`: finds the sub-command and turns its errors into exit codes.

0 done · 1 the server failed or is not there · 2 the request or its files are wrong · 130 interrupted
"""

import argparse
import os
import sys
from collections.abc import Sequence

from refrag_client.cli import ask, index, store
from refrag_client.errors import InvalidRequest, RefragError

# A sub-command is a module with add_parser(commands) and run(arguments).
COMMANDS = (ask, index, store)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except InvalidRequest as error:
        return _fail(2, str(error))
    except RefragError as error:
        return _fail(1, str(error))
    except KeyboardInterrupt:
        return _fail(130, "interrupted")
    except BrokenPipeError:
        # The reader left, as `head` does. Python flushes stdout once more at exit, so give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="refrag", description="Ask a REFRAG model served by NVIDIA Triton, and fill its store."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands).set_defaults(run=command.run)
    return parser


def _fail(code: int, message: str) -> int:
    print(f"refrag: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
