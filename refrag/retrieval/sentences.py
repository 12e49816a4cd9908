"""Reads passages and questions for a deployed sentence encoder, by passage_encoder.json and its tokenizer.

Its vectors have length 1, so that their product is the cosine.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from refrag.errors import CheckpointError
from refrag.retrieval.base import PassageEncoderIdentity

# N texts, L tokens of the longest, E width

FILE, TOKENIZER = "passage_encoder.json", "passage_tokenizer.json"


@dataclass(frozen=True)
class SentenceForm:
    """The encoder's settings beside its weights.

    max_length: tokens of a text that it reads, special ones included; the rest is left out.
    passage_prefix, question_prefix: put before each, as some encoders were trained.
    """

    identity: PassageEncoderIdentity
    max_length: int
    pad_id: int
    passage_prefix: str = ""
    question_prefix: str = ""

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "SentenceForm":
        """Read the form, or raise CheckpointError that names the file."""
        path = folder / FILE
        try:
            values = json.loads(path.read_text())
            return cls(**{**values, "identity": PassageEncoderIdentity(**values["identity"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error!r}; run the export again") from None


class SentenceReader:
    """Turns texts into the encoder's inputs."""

    def __init__(self, form: SentenceForm, tokenizer: Tokenizer) -> None:
        self.form = form
        self._tokenizer = tokenizer
        # A caller's text may spell a special token, and must stay text.
        tokenizer.encode_special_tokens = True
        tokenizer.enable_truncation(form.max_length)
        tokenizer.no_padding()

    @classmethod
    def load(cls, folder: Path) -> "SentenceReader | None":
        """Return the reader of a deployed encoder, or None if the deployment has none."""
        if not (folder / FILE).exists():
            return None
        return cls(SentenceForm.load(folder), Tokenizer.from_file(str(folder / TOKENIZER)))

    def read_passages(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and mask, both INT64 (N, L)."""
        return self._read([self.form.passage_prefix + text for text in texts])

    def read_question(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and mask, both INT64 (1, L)."""
        return self._read([self.form.question_prefix + text])

    def _read(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
        length = max(1, *map(len, rows))
        ids = np.full((len(rows), length), self.form.pad_id, np.int64)
        mask = np.zeros((len(rows), length), np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        return ids, mask


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Return the vectors at length 1; one of zeros stays.  FP32 (N, E) -> (N, E)"""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)
