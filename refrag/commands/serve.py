"""`refrag serve`: run the embedded tritonserver on one model repository until Ctrl-C or SIGTERM.

It prints the addresses once every model is ready. `refrag check` tells beforehand what this machine lacks. A server
that fails, or loses the process of a model, is reported and started again; the exit code is 1 once it gives up.
"""

import argparse
import logging
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
    _show_reports()
    # A service manager sends SIGTERM; treat it as Ctrl-C, so that the server shuts down in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started_at = time.monotonic()
    try:
        server.start()
        _announce(server, time.monotonic() - started_at)
        if (failure := server.wait()) is not None:
            raise SetupError(failure)
    except KeyboardInterrupt:
        pass
    finally:
        if num_cut := server.stop():
            print(f"{num_cut} answers were still running after the drain and were cut; their callers know", flush=True)


def _show_reports() -> None:
    """Show on stderr what the server's supervisor reports: failures and restarts."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger("refrag.embedded").addHandler(handler)


def _announce(server: EmbeddedServer, seconds: float) -> None:
    print(f"http     http://{server.http_address}")
    print(f"grpc     {server.grpc_address}")
    print(f"metrics  http://{server.metrics_address}/metrics")
    print(f"log      {server.log_path}")
    print(f"ready after {seconds:.1f} s; Ctrl-C stops it", flush=True)
