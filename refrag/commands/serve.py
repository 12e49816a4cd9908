"""`refrag serve`: run the embedded tritonserver on one model repository until Ctrl-C or SIGTERM.

It prints the addresses once every model is ready. `refrag check` tells beforehand what this machine lacks.
"""

import argparse
import signal
import time
from dataclasses import asdict

from refrag.commands.check import parsed_settings
from refrag.embedded.server import EmbeddedServer
from refrag.embedded.settings import add_options
from refrag.errors import SetupError

HELP = "serve a model repository with the embedded tritonserver"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser)


def run(arguments: argparse.Namespace) -> None:
    server = EmbeddedServer(**asdict(parsed_settings(arguments)))
    # A service manager sends SIGTERM; treat it as Ctrl-C, so that the server shuts down in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started_at = time.monotonic()
    try:
        with server:
            _announce(server, time.monotonic() - started_at)
            exit_code = server.wait()
            errors = "\n".join(server.read_errors())
            raise SetupError(f"the server ended by itself with exit code {exit_code}:\n{errors}")
    except KeyboardInterrupt:
        return


def _announce(server: EmbeddedServer, seconds: float) -> None:
    print(f"http     http://{server.http_address}")
    print(f"grpc     {server.grpc_address}")
    print(f"metrics  http://{server.metrics_address}/metrics")
    print(f"log      {server.log_path}")
    print(f"ready after {seconds:.1f} s; Ctrl-C stops it", flush=True)
