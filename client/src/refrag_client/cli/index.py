"""`refrag index`: fill the server's store of chunk vectors from a corpus, ahead of time, and its collections.

A second run goes on where the first stopped: CORPUS.jsonl.indexed, beside the corpus, notes how far it came. If the
lines before that point or the encoder have changed, it starts again, but encodes only what the store lacks.

With --collection the server keeps the texts too, and finds those that fit a question by itself. CORPUS may then be a
folder of text files; a line may have id, title and metadata. What is there already and has not changed is passed over,
so a second run goes on where the first stopped here as well.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from refrag_client.cli import index_collection
from refrag_client.cli.batches import Batch, Mark, load_mark, read_batches, save_mark
from refrag_client.cli.in_order import call_in_order
from refrag_client.cli.options import (
    OPERATION_TIMEOUT_SECONDS,
    add_connection_options,
    add_store_model_option,
    connection_options,
)
from refrag_client.cli.totals import Totals
from refrag_client.errors import InvalidRequest
from refrag_client.store import IndexReport, StoreClient

HELP = "store a corpus's chunk vectors ahead of time"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "corpus",
        metavar="CORPUS",
        type=_parse_corpus,
        nargs="?",
        help="JSON lines, a passage per line, as for `refrag ask`",
    )
    parser.add_argument("--collection", metavar="NAME", help="the collection that keeps the passages")
    parser.add_argument(
        "--delete", nargs="+", default=[], metavar="ID", help="passages to delete from --collection, by their ids"
    )
    parser.add_argument("--fresh", action="store_true", help="from the beginning, whatever is noted as done")
    parser.add_argument("--batch-bytes", type=int, default=1 << 17, help="of a request (default: %(default)s)")
    parser.add_argument("--in-flight", type=int, default=4, help="requests at a time (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    add_store_model_option(parser)
    add_connection_options(parser, timeout_seconds=OPERATION_TIMEOUT_SECONDS)


@dataclass
class StoreTotals(Totals):
    num_bytes: int = 0


def run(arguments: argparse.Namespace) -> None:
    _check(arguments)
    if arguments.collection is not None:
        index_collection.run(arguments)
        return
    with StoreClient(model=arguments.model, **connection_options(arguments)) as client:
        fingerprint = client.stats().fingerprint
        start = Mark(0, 0, "") if arguments.fresh else load_mark(arguments.corpus, fingerprint)
        totals, began, is_noted = StoreTotals(), time.perf_counter(), True
        with tqdm(
            total=arguments.corpus.stat().st_size, initial=start.offset, unit="B", unit_scale=True, file=sys.stderr
        ) as bar:
            for batch, report in _index(client, arguments, start):
                totals.add({**asdict(report), "num_passages": len(batch.passages)})
                is_noted = is_noted and _note(arguments.corpus, fingerprint, batch.mark)
                bar.set_postfix_str(f"{totals.num_encoded / (time.perf_counter() - began):,.0f} vectors/s")
                bar.update(batch.num_bytes)
        _report(arguments, totals, start, time.perf_counter() - began)


def _check(arguments: argparse.Namespace) -> None:
    if arguments.collection is None and (arguments.corpus is None or arguments.delete):
        raise InvalidRequest("name a corpus to index; --delete needs --collection")
    if arguments.corpus is not None and not (arguments.collection and arguments.corpus.is_dir()):
        _check_readable(arguments.corpus)
    for name in ("batch_bytes", "in_flight"):
        if getattr(arguments, name) < 1:
            raise InvalidRequest(f"{name} is {getattr(arguments, name)}; give at least 1")


def _parse_corpus(text: str) -> Path:
    # The path of no name is the working directory's.
    if not text:
        raise argparse.ArgumentTypeError("it is empty; name a file, or with --collection a folder")
    return Path(text)


def _check_readable(corpus: Path) -> None:
    try:
        corpus.open("rb").close()
    except OSError as error:
        raise InvalidRequest(f"{corpus} is no file to read ({error.strerror}); give one of JSON lines") from None


def _index(client: StoreClient, arguments: argparse.Namespace, start: Mark) -> Iterator[tuple[Batch, IndexReport]]:
    def send(batch: Batch) -> IndexReport:
        return client.index(batch.passages)

    batches = read_batches(arguments.corpus, start, arguments.batch_bytes)
    yield from call_in_order(batches, send, arguments.in_flight, client.close)


def _note(corpus: Path, fingerprint: str, mark: Mark) -> bool:
    """Note what is indexed, and return whether that could be done; a folder may be there to be read only."""
    try:
        save_mark(corpus, fingerprint, mark)
    except OSError as error:
        told = f"nothing is noted beside {corpus} ({error.strerror}); another run goes through it from the beginning"
        print(told, file=sys.stderr)
        return False
    return True


def _report(arguments: argparse.Namespace, totals: StoreTotals, start: Mark, seconds: float) -> None:
    rate = totals.num_encoded / seconds
    if arguments.json:
        print(json.dumps({**vars(totals), "seconds": round(seconds, 3), "vectors_per_second": round(rate, 1)}))
        return
    print(
        f"{totals.num_passages:,} passages, {totals.num_chunks:,} chunks of {totals.num_tokens:,} tokens; "
        f"{totals.num_encoded:,} vectors encoded and stored, {totals.num_bytes:,} bytes, {rate:,.0f} vectors/s"
    )
    if start.offset:
        print(f"{start.num_lines:,} lines had been indexed before; --fresh goes through them again", file=sys.stderr)
