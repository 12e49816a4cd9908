"""`refrag openai`: serve OpenAI's API, and a page to try it on, in front of a running Triton.

Chat and text completions with documents and citations, embeddings, models, health and metrics. It holds no state: run
as many of them as are needed.
"""

import argparse
import signal

from refrag_client.cli.options import add_connection_options, connection_options
from refrag_client.openai.settings import add_options, settings_from_arguments

HELP = "serve OpenAI's API in front of Triton"
EXTRA = "openai"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser)
    add_connection_options(parser)


def run(arguments: argparse.Namespace) -> None:
    from refrag_client.openai.serving import serve

    # A service manager sends SIGTERM; treat it as Ctrl-C, so that both end in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    serve(settings_from_arguments(arguments), connection_options(arguments), _announce)


def _announce(url: str) -> None:
    print(f"page     {url}/")
    print(f"openai   {url}/v1")
    print("ready; Ctrl-C stops it", flush=True)
