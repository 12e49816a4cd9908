"""The embedded server from a shell.

python -m refrag.embedded check                                     what this machine offers and lacks
python -m refrag.embedded serve --model-repository model_repository    run until Ctrl-C
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import fields

from refrag.embedded.requirements import Machine, check_machine
from refrag.embedded.server import EmbeddedServer
from refrag.embedded.settings import ServerSettings, add_options, settings_from_arguments
from refrag.errors import SetupError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m refrag.embedded", description="The embedded tritonserver.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in (("serve", "run the server until Ctrl-C"), ("check", "report what this machine lacks")):
        add_options(commands.add_parser(name, help=help_text))
    parsed = parser.parse_args(arguments)
    try:
        settings = settings_from_arguments(parsed)
    except ValueError as error:
        parser.error(str(error))
    return serve(settings) if parsed.command == "serve" else check(settings)


def check(settings: ServerSettings) -> int:
    findings = check_machine(Machine.inspect(settings), settings)
    for finding in findings:
        mark = "problem" if finding.problem else "ok"
        print(f"{mark:8} {finding.name:17} {finding.problem or finding.found}")
    return 1 if any(finding.problem for finding in findings) else 0


def serve(settings: ServerSettings) -> int:
    # A service manager stops with SIGTERM; treat it as Ctrl-C, so that the server is stopped in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = EmbeddedServer(**{each.name: getattr(settings, each.name) for each in fields(settings)})
    started_at = time.monotonic()
    try:
        with server:
            _announce(server, time.monotonic() - started_at)
            exit_code = server.wait()
            errors = "\n".join(server.read_errors())
            print(f"the server ended by itself with exit code {exit_code}:\n{errors}", file=sys.stderr)
            return 1
    except KeyboardInterrupt:
        return 0
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1


def _announce(server: EmbeddedServer, seconds: float) -> None:
    print(f"http     http://{server.http_address}")
    print(f"grpc     {server.grpc_address}")
    print(f"metrics  http://{server.metrics_address}/metrics")
    print(f"log      {server.log_path}")
    print(f"ready after {seconds:.1f} s; Ctrl-C stops it", flush=True)


if __name__ == "__main__":
    sys.exit(main())
