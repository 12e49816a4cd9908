"""What a question is asked about, on the command line: passages, a corpus to search, or a document to read whole."""

import argparse
import sys
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from refrag_client.cli.options import connection_options
from refrag_client.corpus import DEFAULT_NUM_PASSAGES, SUFFIXES, Corpus
from refrag_client.errors import InvalidRequest
from refrag_client.passages import read_passages
from refrag_client.store import StoreClient

# Of a document that is encoded ahead of its question. Between two batches the bar moves, and other callers are served.
BATCH_CHARACTERS = 32 * 1024


class Context:
    """Passages that are the same for every question, or a corpus that each question searches anew."""

    def __init__(self, passages: Sequence[str], corpus: Corpus | None, num_passages: int) -> None:
        self.passages, self.corpus, self.num_passages = list(passages), corpus, num_passages

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
    parser.add_argument(
        "--num-passages",
        type=int,
        help=f"passages to take from --corpus (default: {DEFAULT_NUM_PASSAGES})",
    )
    return group


def read_context(arguments: argparse.Namespace) -> Context:
    """Return the context that parsed `arguments` name; raise InvalidRequest if it cannot be read."""
    if arguments.corpus is None:
        if arguments.num_passages is not None:
            raise InvalidRequest("--num-passages says how many to take from --corpus, and there is none; add one")
        return Context(read_passages(arguments.passages) if arguments.passages else [], None, 0)
    count = DEFAULT_NUM_PASSAGES if arguments.num_passages is None else arguments.num_passages
    return Context([], Corpus.read(arguments.corpus), count)


def add_store_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store-model", default="chunk_store", help="name of the model that encodes a document (default: %(default)s)"
    )


def encode_ahead(arguments: argparse.Namespace, passages: Sequence[str]) -> None:
    """Have the server encode and store a document's chunks, with a progress bar.

    Does nothing where the server's store outlives no request: the question itself then waits for the encoder.
    """
    with StoreClient(model=arguments.store_model, **connection_options(arguments)) as client:
        if not client.stats().tiers:
            return
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
