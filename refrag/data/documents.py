"""Streams documents without end: made-up worlds, the standard library's documentation, files, a data set.

One document in ten is held out for evaluation. Its identity alone decides which, so that it stays the same in every
run, on every machine, and whatever is added beside it.
"""

import functools
import gzip
import importlib
import itertools
import json
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO

from refrag.data.sources import TextSource
from refrag.data.stdlib import library_texts
from refrag.data.world.world import Split, make_document, make_world
from refrag.errors import TrainingError

HELDOUT_ONE_IN = 10
TEXT_SUFFIXES = (".txt", ".md", ".rst")
JSONL_SUFFIXES = (".jsonl", ".jsonl.gz")
PASSAGES_PER_WORLD = 10
# Without these limits datasets brings releases of the two that refuse this project's NumPy 1.
INSTALL_DATASETS = 'python -m pip install datasets "pyarrow<26" "pandas<3"'


class Document(NamedTuple):
    """Document whose text is not loaded yet, so that skipping it costs nothing.

    identity: it alone decides the split.
    load: returns the text.
    """

    identity: str
    load: Callable[[], str]


class DocumentStream(Protocol):
    """Documents one after another without end."""

    def draw(self) -> str:
        """Return the text of the next document."""

    def state(self) -> dict[str, Any]:
        """Return the position in the stream as plain JSON values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on exactly at that position."""


def open_documents(source: TextSource, split: Split) -> "Documents":
    """Return the documents of one source that belong to `split`.

    Raise TrainingError if the source needs a path and has none, if nothing is at its path, or if the package datasets
    is needed and missing.
    """
    if source.kind in ("text", "jsonl", "dataset") and source.path is None:
        raise TrainingError(f"a source of kind {source.kind!r} needs a path; add `path` to it")
    if source.kind in ("text", "jsonl") and not Path(str(source.path)).exists():
        raise TrainingError(
            f"{source.path} does not exist; give the source of kind {source.kind!r} the path of a file or a folder"
        )
    if source.kind == "dataset":
        _import_datasets()
    return Documents(source, split)


class Documents:
    """The documents of one source that belong to one split, in an order that never changes.

    It is the source's own for `read`, and shuffled as the source says for training.
    """

    def __init__(self, source: TextSource, split: Split):
        self.source = source
        self.split = split
        self.position = 0
        self._stream: Iterator[str] | None = None

    def read(self) -> Iterator[str]:
        """Yield the text of each document once; worlds never end."""
        return (document.load() for document in self._select())

    def stream(self, skip: int = 0) -> Iterator[str]:
        """Yield the documents' texts, pass after pass without end, but skip the first `skip` of them."""
        while True:
            num_passed = 0
            for document in shuffled(self._select(), self.source.shuffle):
                num_passed += 1
                if num_passed > skip:
                    yield document.load()
            # Whole passes within `skip` need not be made again.
            skip = max(0, skip - num_passed) % num_passed

    def draw(self) -> str:
        if self._stream is None:
            self._stream = self.stream(self.position)
        text = next(self._stream)
        self.position += 1
        return text

    def state(self) -> dict[str, Any]:
        return {"position": self.position}

    def restore(self, state: dict[str, Any]) -> None:
        self.position = state["position"]
        self._stream = None

    def _select(self) -> Iterator[Document]:
        """Yield the documents of this split; raise TrainingError if there are none."""
        num_selected = num_others = 0
        for document in READERS[self.source.kind](self.source):
            if split_of(document.identity) == self.split:
                num_selected += 1
                yield document
            else:
                num_others += 1
        if not num_selected:
            raise TrainingError(
                f"{_name(self.source)} has no {self.split} document and {num_others} of the other split; one in "
                f"{HELDOUT_ONE_IN} is held out: add documents until both splits have some"
            )


def shuffled(documents: Iterator[Document], num_ahead: int) -> Iterator[Document]:
    """Yield every `num_ahead` documents in an order that is random but always the same."""
    for number in itertools.count():
        block = list(itertools.islice(documents, num_ahead))
        if not block:
            return
        random.Random(number).shuffle(block)
        yield from block


class MixedDocuments:
    """Documents of several sources, evenly mixed in proportion to the sources' weights.

    Nothing is left to chance: the next document is of the source that is furthest behind its weight. Raises
    TrainingError if there is no source, or as open_documents does.
    """

    def __init__(self, sources: Sequence[TextSource], split: Split):
        if not sources:
            raise TrainingError("no text source is named; add at least one to `sources`")
        self._parts = [open_documents(source, split) for source in sources]

    def draw(self) -> str:
        return min(self._parts, key=lambda part: (part.position + 1) / part.source.weight).draw()

    def state(self) -> dict[str, Any]:
        return {"positions": [part.position for part in self._parts]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on at `state`; raise TrainingError if it is of another number of sources."""
        if len(state["positions"]) != len(self._parts):
            raise TrainingError(
                f"the state is of {len(state['positions'])} text sources, not of {len(self._parts)}; "
                "go on with the sources that training was started with"
            )
        for part, position in zip(self._parts, state["positions"], strict=True):
            part.restore({"position": position})


def split_of(identity: str) -> Split:
    """Return the split of the document of that identity; one in ten is held out."""
    # A file name whose bytes are not UTF-8 is a string that cannot be encoded strictly.
    return "heldout" if zlib.crc32(identity.encode(errors="surrogatepass")) % HELDOUT_ONE_IN == 0 else "train"


def _name(source: TextSource) -> str:
    return f"the {source.kind} source {source.path or ''}".strip()


def _read_worlds(source: TextSource) -> Iterator[Document]:
    for number in itertools.count():
        identity = f"world {number}"
        yield Document(identity, functools.partial(_tell_world, identity))


def _tell_world(identity: str) -> str:
    """Make a world whose names are of the split that its own identity falls into, and return a document about it."""
    rng = random.Random(identity)
    return make_document(rng, make_world(rng, PASSAGES_PER_WORLD, split_of(identity)))


def _read_stdlib(source: TextSource) -> Iterator[Document]:
    return itertools.starmap(_at_hand, library_texts().items())


def _read_text(source: TextSource) -> Iterator[Document]:
    root, paths = _list_files(source, TEXT_SUFFIXES)
    for path in paths:
        if path.stat().st_size:
            yield Document(path.relative_to(root).as_posix(), functools.partial(_read_file, path))


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise TrainingError(f"{path} cannot be read as UTF-8 text: {error}; convert it, or move it elsewhere") from None


def _read_jsonl(source: TextSource) -> Iterator[Document]:
    _, paths = _list_files(source, JSONL_SUFFIXES)
    for path in paths:
        for number, line in _number_lines(path):
            place = f"{path} line {number}"
            yield from _from_record(_parse(line, place), source.text_field, place)


def _read_dataset(source: TextSource) -> Iterator[Document]:
    datasets = _import_datasets()
    try:
        records = datasets.load_dataset(source.path, split=source.split, streaming=True)
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"the data set {source.path} has no split {source.split!r} to read: {error}; correct its path or split"
        ) from None
    for number, record in enumerate(records):
        yield from _from_record(record, source.text_field, f"{source.path} record {number}")


READERS: dict[str, Callable[[TextSource], Iterator[Document]]] = {
    "world": _read_worlds,
    "stdlib": _read_stdlib,
    "text": _read_text,
    "jsonl": _read_jsonl,
    "dataset": _read_dataset,
}


def _list_files(source: TextSource, suffixes: tuple[str, ...]) -> tuple[Path, list[Path]]:
    """Return the folder that identities are relative to, and its files in an order that no file system changes."""
    path = Path(str(source.path))
    if path.is_file():
        return path.parent, [path]
    paths = sorted(file for file in path.rglob("*") if file.name.endswith(suffixes) and file.is_file())
    if not paths:
        raise TrainingError(f"{path} holds no file that ends in {', '.join(suffixes)}; add one, or name another path")
    return path, paths


def _number_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each line that is not blank, with its number from 1."""
    number = 0
    try:
        with _open_lines(path) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        raise TrainingError(
            f"{path} cannot be read behind line {number}: {error}; it must be UTF-8 text, compressed by gzip if it is "
            "a .gz file"
        ) from None


def _open_lines(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _parse(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise TrainingError(f"{place} is not JSON: {error}; correct or remove it") from None


def _from_record(record: Any, text_field: str, place: str) -> Iterator[Document]:
    """Yield the record's document, unless it is blank.

    Its text is its identity, so that a document that comes twice is never in both splits.
    """
    text = record.get(text_field) if isinstance(record, dict) else record
    if not isinstance(text, str):
        found = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise TrainingError(
            f"{place} has no text under {text_field!r}, only {found}; set text_field to the field that holds the text"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TrainingError(f"{place} has text that no tokenizer takes: {error}; correct or remove it") from None
    if text.strip():
        yield _at_hand(text, text)


def _at_hand(identity: str, text: str) -> Document:
    return Document(identity, lambda: text)


def _import_datasets() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise TrainingError(
            f"a source of kind 'dataset' needs the package datasets ({error}); install it: {INSTALL_DATASETS}"
        ) from None
