"""`refrag chat`: a conversation, one line a turn, in which every question goes with all the turns before it.

At a terminal, /new begins another conversation and /quit ends it, as the end of the input does. Questions may be piped
in as well, one a line.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator

from refrag_client.cli.context import Context, add_context_options, read_context
from refrag_client.cli.options import add_client_options, add_request_options, client_options, request_options
from refrag_client.cli.printing import print_citations, print_pieces, print_summary
from refrag_client.client import RefragClient
from refrag_client.errors import InvalidRequest, RefragError
from refrag_client.request import GenerateOptions

HELP = "hold a conversation about passages"
PROMPT, NEW, QUIT = "> ", "/new", "/quit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_context_options(parser)
    add_client_options(parser)
    add_request_options(parser)
    parser.add_argument(
        "--whole-history", action="store_true", help="refuse a question rather than leave out the oldest turns"
    )
    parser.add_argument("--citations", action="store_true", help="print what each answer rests on")


def run(arguments: argparse.Namespace) -> None:
    if arguments.passages == "-":
        raise InvalidRequest("--passages is standard input, where the questions come from; give a file")
    context = read_context(arguments)
    options: GenerateOptions = {**request_options(arguments), "whole_history": arguments.whole_history}
    with RefragClient(**client_options(arguments)) as client:
        _converse(Conversation(client, context, options, arguments.citations))


class Conversation:
    """The turns so far, and how the next question is asked."""

    def __init__(self, client: RefragClient, context: Context, options: GenerateOptions, cites: bool) -> None:
        self.client, self.context, self.options, self.cites = client, context, options, cites
        self.turns: list[str] = []

    def ask(self, question: str) -> None:
        """Ask and print the answer; both become turns once the answer has come whole, and is not empty."""
        # A question such as "And where?" has no word to search for but those of the one before it.
        passages = self.context.passages_for("\n".join([*self.turns[-2:-1], question]))
        options: GenerateOptions = {**self.options, **self.context.search, "history": self.turns}
        with self.client.stream(question, passages, **options) as stream:
            print_pieces(stream)
        if self.cites:
            print_citations(stream.answer, passages)
        print_summary(stream.answer)
        if stream.answer.text.strip():
            self.turns += [question, stream.answer.text]


def _converse(conversation: Conversation) -> None:
    for line in _read_lines():
        if line == NEW:
            conversation.turns.clear()
            continue
        try:
            conversation.ask(line)
        except (RefragError, KeyboardInterrupt) as error:
            # A person may ask another question; a pipe has nobody to read what went wrong.
            if not sys.stdin.isatty():
                raise
            print(f"refrag: {str(error) or 'interrupted'}", file=sys.stderr)


def _read_lines() -> Iterator[str]:
    """Yield what is asked, until the input ends."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        # Edits lines and remembers them, where Python has it.
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
    while True:
        try:
            line = (input(PROMPT) if is_terminal else _next_piped()).strip()
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"standard input is not UTF-8 (at byte {error.start} of a line)") from None
        if line == QUIT:
            return
        if line:
            yield line


def _next_piped() -> str:
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    return line.decode()
