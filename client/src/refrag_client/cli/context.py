"""Reads what a question is about from the command line: passages, a corpus or collection to search, or a document."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import cast

from tqdm import tqdm

from refrag_client.cli.options import add_search_options, connection_options, search_options
from refrag_client.corpus import DEFAULT_NUM_PASSAGES, SUFFIXES, Corpus
from refrag_client.errors import InvalidRequest, Overloaded
from refrag_client.passages import read_passages
from refrag_client.request import GenerateOptions
from refrag_client.store import StoreClient

# Of a document that is encoded ahead of its question. Between two batches the bar moves, and other callers are served.
BATCH_CHARACTERS = 32 * 1024


class Context:
    """Passages that are the same for every question, or a corpus that each question searches anew.

    search: options that have the server search a collection instead.
    """

    def __init__(
        self,
        passages: Sequence[str] = (),
        corpus: Corpus | None = None,
        num_passages: int = DEFAULT_NUM_PASSAGES,
        search: GenerateOptions | None = None,
    ) -> None:
        self.passages, self.corpus, self.num_passages = list(passages), corpus, num_passages
        self.search: GenerateOptions = search or {}

    def passages_for(self, query: str) -> list[str]:
        return self.passages if self.corpus is None else self.corpus.search(query, self.num_passages)


def add_context_options(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Add the options that `read_context` reads, and return the group of those of which one alone can be given."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--passages", metavar="FILE", help="JSON lines, or plain text with blank lines between passages; - is stdin"
    )
    group.add_argument(
        "--corpus", metavar="FOLDER", help=f"search the {', '.join(SUFFIXES)} files below a folder for passages"
    )
    group.add_argument("--collection", metavar="NAME", help="let the server search one of its collections")
    add_search_options(parser)
    return group


def read_context(arguments: argparse.Namespace) -> Context:
    """Return the context that parsed `arguments` name; raise InvalidRequest if it cannot be read."""
    _check_search_options(arguments)
    if arguments.collection is not None:
        search = {"collection": arguments.collection, **search_options(arguments)}
        return Context(search=cast(GenerateOptions, search))
    if arguments.corpus is None:
        return Context([] if arguments.passages is None else _read_passages(arguments.passages))
    if not arguments.corpus:
        # The path of no name is the working directory's.
        raise InvalidRequest("--corpus names no folder; name one, or . for the working directory")
    count = DEFAULT_NUM_PASSAGES if arguments.num_passages is None else arguments.num_passages
    return Context(corpus=Corpus.read(arguments.corpus), num_passages=count)


def _read_passages(source: str) -> list[str]:
    """Return the passages in a file that was named; raise InvalidRequest if there is none to answer from."""
    if not source:
        raise InvalidRequest("--passages names no file; name one, or - for standard input")
    passages = read_passages(source)
    if not passages:
        place = "standard input" if source == "-" else source
        raise InvalidRequest(f"{place} holds no passage; give one at least, or leave --passages out")
    return passages


def _check_search_options(arguments: argparse.Namespace) -> None:
    """Raise InvalidRequest for an option of a search where nothing is searched."""
    if arguments.num_passages is not None and arguments.corpus is None and arguments.collection is None:
        raise InvalidRequest(
            "--num-passages says how many to take from --corpus or --collection, and there is neither; add one"
        )
    for name in ("filter", "search_mode"):
        if getattr(arguments, name) is not None and arguments.collection is None:
            raise InvalidRequest(f"--{name.replace('_', '-')} is of a search in a --collection; add one")


def add_store_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store-model", default="chunk_store", help="name of the model that encodes a document (default: %(default)s)"
    )


def encode_ahead(arguments: argparse.Namespace, passages: Sequence[str]) -> None:
    """Have the server encode and store a document's chunks, with a progress bar.

    Does nothing where the server's store outlives no request, and ends early where the store takes nothing: the
    question itself then waits for the encoder.
    """
    with StoreClient(model=arguments.store_model, **connection_options(arguments)) as client:
        try:
            if client.stats().tiers:
                _index(client, passages)
        except Overloaded as error:
            print(f"nothing more is stored ahead of the question: {error}", file=sys.stderr)


def _index(client: StoreClient, passages: Sequence[str]) -> None:
    num_encoded = 0
    with tqdm(total=sum(map(len, passages)), unit=" characters", unit_scale=True, file=sys.stderr) as bar:
        for batch in _batches(passages):
            num_encoded += client.index(batch).num_encoded
            bar.set_postfix_str(f"{num_encoded} chunks encoded")
            bar.update(sum(map(len, batch)))


def _batches(passages: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for passage in passages:
        if batch and sum(map(len, batch)) + len(passage) > BATCH_CHARACTERS:
            yield batch
            batch = []
        batch.append(passage)
    if batch:
        yield batch
