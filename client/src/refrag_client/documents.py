"""A document from a file, cut into consecutive passages in their order."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from refrag_client.corpus import MAX_WORDS
from refrag_client.errors import InvalidRequest

# Forms that hold text, but not as text. Others are found out by their bytes.
CONVERTIBLE = (".pdf", ".docx", ".doc", ".odt", ".epub", ".rtf", ".xlsx", ".pptx")
# Behind a sentence, and between paragraphs.
BOUNDARY = re.compile(r"(?<=[.!?])\s+|\n\s*\n")
WORDS = re.compile(rf"(?:\S+\s*){{1,{MAX_WORDS}}}")
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_document(source: str) -> list[str]:
    """Return the passages of the document in the file `source`, "-" for stdin, in their order.

    Raises InvalidRequest, which names the file, if it cannot be read, is not text, or holds none.
    """
    name = "standard input" if source == "-" else source
    if (suffix := Path(source).suffix.lower()) in CONVERTIBLE:
        raise InvalidRequest(f"{name} is a {suffix} file; convert it to plain text first")
    passages = list(_cut(_decode(name, _read(source))))
    if not passages:
        raise InvalidRequest(f"{name} holds no text; give a document of at least a word")
    return passages


def _cut(text: str) -> Iterator[str]:
    """Yield stretches of the text of up to MAX_WORDS words, which end with a sentence or a paragraph where they can."""
    start = end = num_words = 0
    for piece in _pieces(text):
        length = len(piece.split())
        if num_words + length > MAX_WORDS:
            yield text[start:end].strip()
            start, num_words = end, 0
        end += len(piece)
        num_words += length
    if num_words:
        yield text[start:end].strip()


def _pieces(text: str) -> Iterator[str]:
    """Yield sentences with the white space behind them, and stretches of those that have too many words."""
    start = 0
    for end in [*(boundary.end() for boundary in BOUNDARY.finditer(text)), len(text)]:
        sentence = text[start:end]
        leading = sentence[: len(sentence) - len(sentence.lstrip())]
        yield from filter(None, [leading, *WORDS.findall(sentence)])
        start = end


def _read(source: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise InvalidRequest(f"cannot read the document {source}: {error.strerror}") from None


def _decode(name: str, content: bytes) -> str:
    if content.startswith(UTF_16_MARKS):
        raise InvalidRequest(f"{name} is UTF-16 text; convert it to UTF-8 first")
    if (place := content.find(b"\0")) >= 0:
        raise InvalidRequest(f"{name} is a binary file (a zero byte at {place}); give one of plain text")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{name} is a binary file, or not UTF-8 (at byte {error.start}); give one of UTF-8 text"
        ) from None
