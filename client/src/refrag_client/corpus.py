"""Passages cut from a folder of text files, and the search for those that fit a question.

Searching needs the extra `corpus`: pip install 'refrag-client[corpus]'.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from refrag_client.errors import InvalidRequest, RefragError

SUFFIXES = (".txt", ".md", ".rst")
# About as long as the passages that retrieval is usually measured on, Wikipedia in blocks of a hundred words.
MAX_WORDS = 120
DEFAULT_NUM_PASSAGES = 10


class Corpus:
    """Passages with a BM25 index over them."""

    def __init__(self, passages: Sequence[str]) -> None:
        """Index the passages; raise InvalidRequest if they hold no word to search for.

        Raises RefragError if bm25s is not installed.
        """
        self.passages = list(passages)
        self._bm25s = _import_bm25s()
        tokens = self._tokenise(self.passages) if self.passages else None
        if tokens is None or not tokens.vocab.keys() - {""}:
            raise InvalidRequest("the corpus has no word that can be searched for; give it passages of text")
        self._index = self._bm25s.BM25()
        self._index.index(tokens, show_progress=False)

    @classmethod
    def read(cls, folder: Path | str) -> "Corpus":
        """Index the text files in a folder and the folders in it; raise InvalidRequest if one cannot be read."""
        return cls(read_folder(folder))

    def search(self, question: str, num_passages: int = DEFAULT_NUM_PASSAGES) -> list[str]:
        """Return up to `num_passages` passages, the best first; none that shares no word with the question."""
        if num_passages < 1:
            raise InvalidRequest(f"num_passages is {num_passages}; it must be at least 1")
        count = min(num_passages, len(self.passages))
        places, scores = self._index.retrieve(self._tokenise([question]), k=count, show_progress=False)
        return [self.passages[place] for place, score in zip(places[0], scores[0], strict=True) if score > 0]

    def _tokenise(self, texts: list[str]) -> Any:
        return self._bm25s.tokenize(texts, stopwords="en", show_progress=False)


def read_folder(folder: Path | str) -> list[str]:
    """Return the passages of all text files below a folder, each headed by its file's path in the folder.

    Raises InvalidRequest as `read_files` does.
    """
    return [f"{path}\n{text}" for path, text in read_files(folder)]


def read_files(folder: Path | str) -> list[tuple[str, str]]:
    """Return the passages of all text files below a folder, each with its file's path in the folder.

    Raises InvalidRequest if the folder is none, holds no such file, or holds one that is not UTF-8.
    """
    folder = Path(folder)
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        raise InvalidRequest(
            f"{folder} is not a folder to read ({error.strerror}); name one that holds {', '.join(SUFFIXES)} files"
        ) from None
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    passages = [(str(file.relative_to(folder)), text) for file in files for text in cut_text(_read_text(file))]
    if not passages:
        raise InvalidRequest(f"{folder} holds no text in {', '.join(SUFFIXES)} files; add some, or name another folder")
    return passages


def cut_text(text: str, max_words: int = MAX_WORDS) -> Iterator[str]:
    """Yield passages of up to `max_words` words: whole paragraphs, or sentences where a paragraph is longer.

    A sentence that is longer still is cut between words.
    """
    gathered: list[str] = []
    num_words = 0
    for piece in _pieces(text, max_words):
        length = len(piece.split())
        if gathered and num_words + length > max_words:
            yield "\n".join(gathered)
            gathered, num_words = [], 0
        gathered.append(piece)
        num_words += length
    if gathered:
        yield "\n".join(gathered)


def _pieces(text: str, max_words: int) -> Iterator[str]:
    """Yield paragraphs, sentences of long paragraphs, and stretches of long sentences."""
    for paragraph in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        if len(paragraph.split()) <= max_words:
            yield from [paragraph.strip()] if paragraph.strip() else []
            continue
        for sentence in re.split(r"(?<=[.!?])\s+", paragraph):
            words = sentence.split()
            yield from (" ".join(words[start : start + max_words]) for start in range(0, len(words), max_words))


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidRequest(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{file} is not UTF-8 at byte {error.start}; convert it, or move it elsewhere") from None


def _import_bm25s() -> Any:
    try:
        import bm25s
    except ModuleNotFoundError:
        raise RefragError("searching a corpus needs bm25s; pip install 'refrag-client[corpus]'") from None
    return bm25s
