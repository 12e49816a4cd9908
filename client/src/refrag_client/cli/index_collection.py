"""`refrag index --collection`: texts and vectors of a corpus go into a collection of the server, or out of it."""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass

from tqdm import tqdm

from refrag_client.cli.documents import DocumentBatch, corpus_bytes, read_document_batches
from refrag_client.cli.in_order import call_in_order, retry
from refrag_client.cli.options import connection_options
from refrag_client.cli.totals import Totals
from refrag_client.collections import CollectionClient, WriteReport
from refrag_client.errors import InvalidRequest

# Ids in one request.
DELETED_AT_ONCE = 1000


@dataclass
class CollectionTotals(Totals):
    num_written: int = 0


def run(arguments: argparse.Namespace) -> None:
    """Index the corpus into the collection, delete ids from it, or both in this order."""
    if arguments.corpus is None and not arguments.delete:
        raise InvalidRequest("there is nothing to do: name a corpus to index, or ids to --delete")
    with CollectionClient(**connection_options(arguments)) as client:
        if arguments.corpus is not None:
            _index(client, arguments)
        if arguments.delete:
            _delete(client, arguments)
        retry(client.optimize, arguments.collection)


def _index(client: CollectionClient, arguments: argparse.Namespace) -> None:
    def send(batch: DocumentBatch) -> WriteReport:
        return client.index(arguments.collection, batch.documents)

    totals, began = CollectionTotals(), time.perf_counter()
    batches = read_document_batches(arguments.corpus, arguments.batch_bytes)
    with tqdm(total=corpus_bytes(arguments.corpus), unit="B", unit_scale=True, file=sys.stderr) as bar:
        for batch, report in call_in_order(batches, send, arguments.in_flight, client.close):
            totals.add(asdict(report))
            bar.set_postfix_str(f"{totals.num_passages / (time.perf_counter() - began):,.0f} passages/s")
            bar.update(batch.num_bytes)
    _report(arguments, totals, time.perf_counter() - began)


def _delete(client: CollectionClient, arguments: argparse.Namespace) -> None:
    batches = (
        arguments.delete[start : start + DELETED_AT_ONCE] for start in range(0, len(arguments.delete), DELETED_AT_ONCE)
    )
    num_deleted = sum(retry(client.delete, arguments.collection, ids) for ids in batches)
    print(json.dumps({"num_deleted": num_deleted}) if arguments.json else f"{num_deleted:,} passages deleted")


def _report(arguments: argparse.Namespace, totals: CollectionTotals, seconds: float) -> None:
    rate = totals.num_passages / seconds
    if arguments.json:
        print(json.dumps({**vars(totals), "seconds": round(seconds, 3), "passages_per_second": round(rate, 1)}))
        return
    print(
        f"{totals.num_passages:,} passages, {totals.num_written:,} of them new or changed; {totals.num_chunks:,} "
        f"chunks of {totals.num_tokens:,} tokens, {totals.num_encoded:,} vectors encoded and stored; "
        f"{rate:,.0f} passages/s"
    )
