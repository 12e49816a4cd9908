"""`refrag index`: fill the server's store of chunk vectors from a corpus, ahead of time.

A second run goes on where the first stopped: CORPUS.jsonl.indexed, beside the corpus, notes how far it came. If the
lines before that point or the encoder have changed, it starts again, but encodes only what the store lacks.
"""

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from refrag_client.cli.batches import Batch, Mark, load_mark, read_batches, save_mark
from refrag_client.cli.options import add_connection_options, connection_options
from refrag_client.errors import InvalidRequest, Overloaded, ServerUnavailable
from refrag_client.store import IndexReport, StoreClient

HELP = "store a corpus's chunk vectors ahead of time"

# Attempts at a request while a server or its store restarts; each pause is twice as long as the one before.
NUM_ATTEMPTS, FIRST_PAUSE_SECONDS = 6, 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("corpus", metavar="CORPUS.jsonl", type=Path, help="a passage per line, as for `refrag ask`")
    parser.add_argument("--fresh", action="store_true", help="from the beginning, whatever is noted as done")
    parser.add_argument("--batch-bytes", type=int, default=1 << 17, help="of a request (default: %(default)s)")
    parser.add_argument("--in-flight", type=int, default=4, help="requests at a time (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.add_argument("--model", default="chunk_store", help="name of the store's model (default: %(default)s)")
    add_connection_options(parser, timeout_seconds=600.0)


@dataclass
class Totals:
    num_passages: int = 0
    num_chunks: int = 0
    num_tokens: int = 0
    num_encoded: int = 0
    num_bytes: int = 0

    def add(self, batch: Batch, report: IndexReport) -> None:
        self.num_passages += len(batch.passages)
        for name in ("num_chunks", "num_tokens", "num_encoded", "num_bytes"):
            setattr(self, name, getattr(self, name) + getattr(report, name))


def run(arguments: argparse.Namespace) -> None:
    _check(arguments)
    with StoreClient(model=arguments.model, **connection_options(arguments)) as client:
        fingerprint = client.stats().fingerprint
        start = Mark(0, 0, "") if arguments.fresh else load_mark(arguments.corpus, fingerprint)
        totals, began = Totals(), time.perf_counter()
        with tqdm(
            total=arguments.corpus.stat().st_size, initial=start.offset, unit="B", unit_scale=True, file=sys.stderr
        ) as bar:
            for batch, report in _index(client, arguments, start):
                totals.add(batch, report)
                save_mark(arguments.corpus, fingerprint, batch.mark)
                bar.set_postfix_str(f"{totals.num_encoded / (time.perf_counter() - began):,.0f} vectors/s")
                bar.update(batch.num_bytes)
        _report(arguments, totals, start, time.perf_counter() - began)


def _check(arguments: argparse.Namespace) -> None:
    try:
        arguments.corpus.open("rb").close()
    except OSError as error:
        raise InvalidRequest(
            f"{arguments.corpus} is no file to read ({error.strerror}); give one of JSON lines"
        ) from None
    for name in ("batch_bytes", "in_flight"):
        if getattr(arguments, name) < 1:
            raise InvalidRequest(f"{name} is {getattr(arguments, name)}; give at least 1")


def _index(client: StoreClient, arguments: argparse.Namespace, start: Mark) -> Iterator[tuple[Batch, IndexReport]]:
    """Index several batches at a time, and yield them in order, so that everything before a noted mark is done."""
    pending: deque[tuple[Batch, Future[IndexReport]]] = deque()
    failure: InvalidRequest | None = None
    with ThreadPoolExecutor(arguments.in_flight) as pool:
        try:
            batches = read_batches(arguments.corpus, start, arguments.batch_bytes)
            while (batch := _next(batches)) is not None:
                if isinstance(batch, InvalidRequest):
                    failure = batch
                    break
                pending.append((batch, pool.submit(_retry, client.index, batch.passages)))
                if len(pending) > arguments.in_flight:
                    yield _first(pending)
            while pending:
                yield _first(pending)
        finally:
            pool.shutdown(cancel_futures=True)
    if failure is not None:
        raise failure


def _next(batches: Iterator[Batch]) -> Batch | InvalidRequest | None:
    """Return the error of a bad line instead of raising it, so that the batches before it are indexed first."""
    try:
        return next(batches, None)
    except InvalidRequest as error:
        return error


def _first(pending: "deque[tuple[Batch, Future[IndexReport]]]") -> tuple[Batch, IndexReport]:
    batch, future = pending.popleft()
    return batch, future.result()


def _retry(call: Any, *arguments: Any) -> Any:
    pause = FIRST_PAUSE_SECONDS
    for _ in range(NUM_ATTEMPTS - 1):
        try:
            return call(*arguments)
        except (Overloaded, ServerUnavailable):
            time.sleep(pause)
            pause *= 2
    return call(*arguments)


def _report(arguments: argparse.Namespace, totals: Totals, start: Mark, seconds: float) -> None:
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
