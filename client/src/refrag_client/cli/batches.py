"""A corpus of JSON lines, read in batches, and the note beside it that tells, even after a kill, what is indexed."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refrag_client.errors import InvalidRequest
from refrag_client.passages import read_json_line

NOTE_SUFFIX = ".indexed"


@dataclass(frozen=True)
class Batch:
    """Passages of consecutive lines, and the state of the corpus after them."""

    passages: list[str]
    num_bytes: int
    mark: "Mark"


@dataclass(frozen=True)
class Mark:
    """The first `offset` bytes, whose hash is `digest`, hold `num_lines` lines."""

    offset: int
    num_lines: int
    digest: str


def read_batches(path: Path, start: Mark, batch_bytes: int) -> Iterator[Batch]:
    """Yield batches of about `batch_bytes` from `start` to the end; raise InvalidRequest for a line without passage."""
    with path.open("rb") as file:
        digest = _digest_of(file, start.offset)
        passages, num_bytes, num_lines, offset = [], 0, start.num_lines, start.offset
        for line in file:
            digest.update(line)
            num_lines, offset, num_bytes = num_lines + 1, offset + len(line), num_bytes + len(line)
            if line.strip():
                passages.append(_decode(path, num_lines, line))
            if num_bytes >= batch_bytes:
                yield Batch(passages, num_bytes, Mark(offset, num_lines, digest.hexdigest()))
                passages, num_bytes = [], 0
        if num_bytes:
            yield Batch(passages, num_bytes, Mark(offset, num_lines, digest.hexdigest()))


def load_mark(path: Path, fingerprint: str) -> Mark:
    """Return how far the corpus has been indexed with this encoder: the start if the encoder or those lines changed."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        note = json.loads(_note_path(path).read_text())
        mark = Mark(**note["mark"])
        if note["fingerprint"] == fingerprint and _digest(path, mark.offset) == mark.digest:
            return mark
    return Mark(0, 0, "")


def save_mark(path: Path, fingerprint: str, mark: Mark) -> None:
    """Write the note as a whole: after a kill the old or the new note is there, never half of one."""
    note = _note_path(path)
    written = note.with_name(f"{note.name}.new")
    written.write_text(json.dumps({"fingerprint": fingerprint, "mark": asdict(mark)}) + "\n")
    written.replace(note)


def _note_path(path: Path) -> Path:
    return path.with_name(path.name + NOTE_SUFFIX)


def _digest(path: Path, num_bytes: int) -> str:
    with path.open("rb") as file:
        digest = _digest_of(file, num_bytes)
        return digest.hexdigest() if file.tell() == num_bytes else "shorter than it was"


def _digest_of(file: Any, num_bytes: int) -> Any:
    """Return the digest of the next `num_bytes` bytes of the file, or of those that are left."""
    digest = hashlib.blake2b(digest_size=16)
    while num_bytes > 0 and (block := file.read(min(num_bytes, 1 << 20))):
        digest.update(block)
        num_bytes -= len(block)
    return digest


def _decode(path: Path, number: int, line: bytes) -> str:
    place = f"{path}, line {number}"
    try:
        return read_json_line(place, line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{place} is not UTF-8 at byte {error.start}; convert the file first") from None
