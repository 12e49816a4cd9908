"""`refrag ask`: ask one question, print the answer as it arrives, and sum up what it took."""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from refrag_client.answer import Answer, Piece
from refrag_client.cli.options import add_connection_options, add_request_options, connection_options, request_options
from refrag_client.client import RefragClient
from refrag_client.corpus import DEFAULT_NUM_PASSAGES, SUFFIXES, Corpus
from refrag_client.errors import InvalidRequest
from refrag_client.passages import read_passages
from refrag_client.request import GenerateOptions

HELP = "ask a question about passages"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("question", metavar="QUESTION")
    context = parser.add_mutually_exclusive_group()
    context.add_argument(
        "--passages", metavar="FILE", help="JSON lines, or plain text with blank lines between passages; - is stdin"
    )
    context.add_argument(
        "--corpus", metavar="FOLDER", help=f"search the {', '.join(SUFFIXES)} files below a folder for passages"
    )
    parser.add_argument(
        "--num-passages",
        type=int,
        help=f"passages to take from --corpus (default: {DEFAULT_NUM_PASSAGES})",
    )
    parser.add_argument("--model", default="refrag", help="name of the model (default: %(default)s)")
    parser.add_argument("--decoder-model", default="decoder", help="name of the model to stop (default: %(default)s)")
    add_connection_options(parser)
    add_request_options(parser)
    parser.add_argument("--json", action="store_true", help="print the whole answer as one JSON object")
    parser.add_argument("--compare", action="store_true", help="ask the plain decoder too (--expand-fraction 1)")


def run(arguments: argparse.Namespace) -> None:
    passages = _find_passages(arguments)
    options = request_options(arguments)
    models = {"model": arguments.model, "decoder_model": arguments.decoder_model}
    with RefragClient(**models, **connection_options(arguments)) as client:
        if arguments.compare:
            _compare(client, arguments, passages, options)
        else:
            _ask(client, arguments, passages, options)


def _find_passages(arguments: argparse.Namespace) -> list[str]:
    """Return the passages that were given, or those of the corpus that fit the question."""
    if arguments.corpus is None:
        if arguments.num_passages is not None:
            raise InvalidRequest("--num-passages says how many to take from --corpus, and there is none; add one")
        return read_passages(arguments.passages) if arguments.passages else []
    count = DEFAULT_NUM_PASSAGES if arguments.num_passages is None else arguments.num_passages
    passages = Corpus.read(arguments.corpus).search(arguments.question, count)
    if not passages:
        raise InvalidRequest(
            f"no passage of {arguments.corpus} shares a word with the question; ask in the words of the corpus, or "
            "leave --corpus out"
        )
    return passages


def _ask(client: RefragClient, arguments: argparse.Namespace, passages: list[str], options: GenerateOptions) -> None:
    answer = _stream_answer(client, arguments, passages, options)
    if arguments.json:
        _print_json(asdict(answer))


def _compare(
    client: RefragClient, arguments: argparse.Namespace, passages: list[str], options: GenerateOptions
) -> None:
    _head(arguments, "compressed:")
    compressed = _stream_answer(client, arguments, passages, options)
    _head(arguments, "\nplain decoder:")
    plain = _stream_answer(client, arguments, passages, {**options, "expand_fraction": 1.0})
    ratio = _ttft_ratio(compressed, plain)
    if arguments.json:
        _print_json({"compressed": asdict(compressed), "plain": asdict(plain), "ttft_ratio": ratio})
    print(f"TTFT plain / compressed: {_format(ratio, '{:.2f}x')}", file=sys.stderr)


def _stream_answer(
    client: RefragClient, arguments: argparse.Namespace, passages: list[str], options: GenerateOptions
) -> Answer:
    """Ask, print the text as it comes (unless JSON is asked for), and print the summary on stderr."""
    with client.stream(arguments.question, passages, **options) as stream:
        if not arguments.json:
            _print_pieces(stream)
        else:
            for _ in stream:
                pass
    print(_summary(stream.answer), file=sys.stderr)
    return stream.answer


def _print_pieces(pieces: Iterable[Piece]) -> None:
    """Print the text as it comes, and end the line; after some text an error stands on a line of its own too."""
    has_text = False
    try:
        for piece in pieces:
            print(piece.text, end="", flush=True)
            has_text = has_text or bool(piece.text)
    except BaseException:
        if has_text:
            print(flush=True)
        raise
    print(flush=True)


def _summary(answer: Answer) -> str:
    statistics = answer.statistics
    ttft_ms = None if answer.ttft_seconds is None else 1000 * answer.ttft_seconds
    return (
        f"{statistics.num_output_tokens} output tokens · {statistics.context_tokens} context tokens"
        f" · {statistics.num_chunks} chunks, {statistics.num_stored_chunks} of them stored,"
        f" {statistics.num_expanded_chunks} expanded"
        f" · {statistics.prompt_slots} prompt slots · TTFT {_format(ttft_ms, '{:.1f} ms')}"
    )


def _ttft_ratio(compressed: Answer, plain: Answer) -> float | None:
    if compressed.ttft_seconds is None or plain.ttft_seconds is None:
        return None
    return plain.ttft_seconds / compressed.ttft_seconds


def _head(arguments: argparse.Namespace, title: str) -> None:
    if not arguments.json:
        print(title, flush=True)


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False))


def _format(value: float | None, pattern: str) -> str:
    return "unknown" if value is None else pattern.format(value)
