"""`refrag ask`: ask one question, print the answer as it arrives, and sum up what it took."""

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from refrag_client.answer import Answer
from refrag_client.cli.context import Context, add_context_options, add_store_option, encode_ahead, read_context
from refrag_client.cli.options import add_client_options, add_request_options, client_options, request_options
from refrag_client.cli.printing import format_value, print_citations, print_pieces, print_summary
from refrag_client.client import RefragClient
from refrag_client.documents import read_document
from refrag_client.errors import InvalidRequest
from refrag_client.request import GenerateOptions

HELP = "ask a question about passages or a document"

# What the plain decoder is asked with, whatever the request and the server's default say about compression.
PLAIN: GenerateOptions = {"policy": "all", "expand_fraction": 1.0, "max_prompt_slots": None, "min_confidence": None}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("question", metavar="QUESTION")
    group = add_context_options(parser)
    group.add_argument("--document", metavar="FILE", help="read a whole document, in its order; - is stdin")
    add_client_options(parser)
    add_store_option(parser)
    add_request_options(parser)
    parser.add_argument("--citations", action="store_true", help="print what the answer rests on")
    parser.add_argument("--json", action="store_true", help="print the whole answer as one JSON object")
    parser.add_argument("--compare", action="store_true", help="ask the plain decoder too (--policy all)")


def run(arguments: argparse.Namespace) -> None:
    context = read_context(arguments)
    passages = _find_passages(arguments, context)
    if arguments.document is not None:
        encode_ahead(arguments, passages)
    options: GenerateOptions = {**request_options(arguments), **context.search}
    with RefragClient(**client_options(arguments)) as client:
        if arguments.compare:
            _compare(client, arguments, passages, options)
        else:
            ask(client, arguments, passages, options)


def ask(client: RefragClient, arguments: argparse.Namespace, passages: list[str], options: GenerateOptions) -> None:
    """Ask, and print all that `arguments` want to see."""
    answer = _stream_answer(client, arguments, passages, options)
    if arguments.json:
        _print_json(asdict(answer))


def _find_passages(arguments: argparse.Namespace, context: Context) -> list[str]:
    """Return the passages that were given, those of the corpus that fit the question, or the document's."""
    if arguments.document is not None:
        return read_document(arguments.document)
    passages = context.passages_for(arguments.question)
    if arguments.corpus is not None and not passages:
        raise InvalidRequest(
            f"no passage of {arguments.corpus} shares a word with the question; ask in the words of the corpus, or "
            "leave --corpus out"
        )
    return passages


def _compare(
    client: RefragClient, arguments: argparse.Namespace, passages: list[str], options: GenerateOptions
) -> None:
    _head(arguments, "compressed:")
    compressed = _stream_answer(client, arguments, passages, options)
    _head(arguments, "\nplain decoder:")
    plain = _stream_answer(client, arguments, passages, {**options, **PLAIN})
    ratio = _ttft_ratio(compressed, plain)
    if arguments.json:
        _print_json({"compressed": asdict(compressed), "plain": asdict(plain), "ttft_ratio": ratio})
    print(f"TTFT plain / compressed: {format_value(ratio, '{:.2f}x')}", file=sys.stderr)


def _stream_answer(
    client: RefragClient, arguments: argparse.Namespace, passages: list[str], options: GenerateOptions
) -> Answer:
    """Ask, print the text as it comes (unless JSON is asked for), and print the summary on stderr."""
    with client.stream(arguments.question, passages, **options) as stream:
        if not arguments.json:
            print_pieces(stream)
        else:
            for _ in stream:
                pass
    if arguments.citations and not arguments.json:
        print_citations(stream.answer, passages)
    print_summary(stream.answer)
    return stream.answer


def _ttft_ratio(compressed: Answer, plain: Answer) -> float | None:
    if compressed.ttft_seconds is None or plain.ttft_seconds is None:
        return None
    return plain.ttft_seconds / compressed.ttft_seconds


def _head(arguments: argparse.Namespace, title: str) -> None:
    if not arguments.json:
        print(title, flush=True)


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False))
