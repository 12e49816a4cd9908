"""`refrag summarize`: read a whole document, compressed, and print a summary of it as it arrives.

A compressed document takes one slot of the decoder's window for each chunk, so k times the window can be read.
"""

import argparse

from refrag_client.cli import ask
from refrag_client.cli.context import add_store_option, encode_ahead
from refrag_client.cli.options import add_client_options, add_request_options, client_options, request_options
from refrag_client.client import RefragClient
from refrag_client.documents import read_document

HELP = "summarize a document"
INSTRUCTION = "Summarize the document."
MAX_TOKENS = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("document", metavar="FILE", help="a document of plain text; - is stdin")
    parser.add_argument(
        "--instruction", dest="question", default=INSTRUCTION, help="what to write about it (default: %(default)s)"
    )
    add_client_options(parser)
    add_store_option(parser)
    add_request_options(parser)
    parser.set_defaults(max_tokens=MAX_TOKENS)
    parser.add_argument("--citations", action="store_true", help="print what the summary rests on")
    parser.add_argument("--json", action="store_true", help="print the whole answer as one JSON object")


def run(arguments: argparse.Namespace) -> None:
    passages = read_document(arguments.document)
    encode_ahead(arguments, passages)
    with RefragClient(**client_options(arguments)) as client:
        ask.ask(client, arguments, passages, request_options(arguments))
