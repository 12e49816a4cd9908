"""Serves a page to try it on: Triton, OpenAI's endpoint and its page, over an indexed corpus of this machine.

    make play        or: python -m examples.play

It needs a repository exported with `--retrieval`. The corpus is the documentation of the Python that runs it, or the
text files below --corpus. It becomes a collection of its own, which the page offers, and stays in --data: the next
start indexes only what has changed, and removes what the corpus no longer has. Ctrl-C ends all of it.
"""

import argparse
import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from examples.documentation import read_documentation
from refrag.embedded import EmbeddedServer
from refrag.embedded.ports import why_not_free
from refrag.errors import RefragError, SetupError
from refrag.retrieval.base import OTHER_ENCODER
from refrag_client import CollectionClient, Document, InvalidRequest, RefragClient
from refrag_client import RefragError as ClientError
from refrag_client.corpus import read_files
from refrag_client.openai.serving import serve
from refrag_client.openai.settings import EndpointSettings

DOCUMENTATION = "documentation"
DATA = Path("build/play")
INDEXED_AT_ONCE = 50
# The most that one request may name.
DELETED_AT_ONCE = 1024
# Of a folder's name and of its hash, in a collection's name, which has at most 128 characters.
NAME_LENGTH, HASH_LENGTH = 64, 8
# Of a passage, for a question that finds it.
QUESTION_WORDS = 12
# A slow or busy machine loads the models slowly, and a plain prompt takes it long.
LONGEST_START_SECONDS = LONGEST_ANSWER_SECONDS = 600


def play(
    repository: Path, collection: str, documents: Sequence[Document], data: Path, settings: EndpointSettings
) -> None:
    """Serve until SIGINT or SIGTERM, with `documents` indexed as `collection`; print where the page is."""
    check_before(repository, settings)
    data = data.resolve()
    environment = {"REFRAG_COLLECTIONS_PATH": str(data / "collections"), "REFRAG_STORE_DISK_PATH": str(data / "store")}
    print("Starting tritonserver …", flush=True)
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with EmbeddedServer(
        repository, **ports, environment=environment, ready_timeout_seconds=LONGEST_START_SECONDS
    ) as server:
        try:
            with CollectionClient(server.grpc_address) as client:
                index(client, collection, documents, data / "ids" / f"{collection}.json")
        except InvalidRequest as error:
            raise with_advice(error, data) from error
        warm_up(server.grpc_address, collection, " ".join(documents[0].text.split()[:QUESTION_WORDS]))
        connection = {"url": server.grpc_address, "timeout_seconds": LONGEST_ANSWER_SECONDS}
        serve(settings, connection, lambda url: announce(url, server.grpc_address, collection))


def check_before(repository: Path, settings: EndpointSettings) -> None:
    """Raise SetupError for what would be found out only after the server has started."""
    if not (repository / "refrag_rag" / "config.pbtxt").exists():
        raise SetupError(f"{repository} has no models for collections; run `refrag export --retrieval`")
    if settings.port and (reason := why_not_free(settings.host, settings.port)):
        raise SetupError(f"port {settings.port} cannot be opened: {reason}; name another one with --port")


def index(client: CollectionClient, collection: str, documents: Sequence[Document], record: Path) -> None:
    """Have the collection hold the documents and no others; those that are there already take little time.

    record: file of the ids that the collection may hold, by which the next run knows what to remove.
    """
    ids = [document.id for document in documents]
    known: list[str] = json.loads(record.read_text()) if record.exists() else []
    gone = sorted(set(known) - set(ids))
    # Before anything is indexed: what a run leaves that is cut off has to be known too.
    write_record(record, [*ids, *gone])
    for first in tqdm(range(0, len(documents), INDEXED_AT_ONCE), desc=f"Indexing {collection}"):
        client.index(collection, documents[first : first + INDEXED_AT_ONCE])
    for first in range(0, len(gone), DELETED_AT_ONCE):
        client.delete(collection, gone[first : first + DELETED_AT_ONCE])
    client.optimize(collection)
    write_record(record, ids)


def write_record(record: Path, ids: Sequence[str]) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    written = record.with_suffix(".new")
    written.write_text(json.dumps(ids))
    written.replace(record)


def with_advice(error: InvalidRequest, data: Path) -> SetupError:
    """Return what the server refused, and how to start anew where that is because another encoder made the vectors."""
    return SetupError(f"{error}; or remove {data}, which starts anew" if OTHER_ENCODER in str(error) else str(error))


def warm_up(address: str, collection: str, question: str) -> None:
    """Ask what finds passages once each way, since the first use of a shape allocates memory that later ones reuse."""
    with RefragClient(address, timeout_seconds=LONGEST_ANSWER_SECONDS) as client:
        for expand_fraction in (None, 1.0):
            client.generate(question, collection=collection, expand_fraction=expand_fraction, max_tokens=2)


def announce(url: str, grpc_address: str, collection: str) -> None:
    print(f"page        {url}/")
    print(f"collection  {collection}")
    print(f"openai      {url}/v1")
    print(f"grpc        {grpc_address}")
    print("ready; Ctrl-C stops it", flush=True)


def read_corpus(folder: Path | None) -> tuple[str, list[Document]]:
    """Return the collection's name, and the passages below the folder, or those of Python's documentation."""
    if folder is None:
        passages = [passage.partition("\n") for passage in read_documentation()]
        return DOCUMENTATION, number_within([(topic, text) for topic, _, text in passages])
    return name_of(folder), number_within(read_files(folder))


def name_of(folder: Path) -> str:
    """Return the name of a folder's collection: the folder's own as far as allowed, and a hash of where it is."""
    path = folder.resolve()
    readable = re.sub(r"[^A-Za-z0-9]+", "-", path.name).strip("-")[:NAME_LENGTH] or "corpus"
    return f"{readable}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:HASH_LENGTH]}"


def number_within(passages: Sequence[tuple[str, str]]) -> list[Document]:
    """Return passages of sources, as documents with ids that say where in its source each of them stands."""
    counts: dict[str, int] = {}
    documents = []
    for source, text in passages:
        counts[source] = counts.get(source, 0) + 1
        documents.append(Document(f"{source}#{counts[source]}", text, source))
    return documents


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--corpus", type=Path, help="a folder of text files in place of Python's documentation")
    parser.add_argument(
        "--data", type=Path, default=DATA, help="folder that keeps what is indexed (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=9000, help="of the page; 0 picks a free one (default: %(default)s)")
    arguments = parser.parse_args()
    # A service manager sends SIGTERM; treat it as Ctrl-C, so that all of it ends in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        collection, documents = read_corpus(arguments.corpus)
        settings = EndpointSettings(port=arguments.port)
        play(arguments.repository, collection, documents, arguments.data, settings)
    except KeyboardInterrupt:
        pass
    except (RefragError, ClientError, OSError) as error:
        print(f"play: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
