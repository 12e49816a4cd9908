"""Passage vectors of a deployed sentence encoder, computed by the model `passage_encoder` of this server."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from refrag.retrieval.base import PassageEncoderIdentity
from refrag.retrieval.sentences import SentenceReader, normalise
from refrag.serving.triton import infer

# N texts, E width of a passage vector

MODEL = "passage_encoder"
# Texts per request, between which others have their turn.
BATCH = 32


class PassageEncoder:
    """The encoder of a deployment that has one."""

    def __init__(self, reader: SentenceReader) -> None:
        self.reader = reader

    @classmethod
    def load(cls, checkpoint: Path) -> "PassageEncoder | None":
        reader = SentenceReader.load(checkpoint)
        return None if reader is None else cls(reader)

    @property
    def identity(self) -> PassageEncoderIdentity:
        return self.reader.form.identity

    def encode_question(self, text: str) -> np.ndarray:
        """Return the question's vector.  FP32 (E,)"""
        return _compute(self.reader.read_question(text))[0]

    def encode_passages(self, texts: Sequence[str]) -> np.ndarray:
        """Return the passages' vectors.  FP32 (N, E)"""
        # Texts of like length together, since all are padded to the longest.
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        vectors = np.zeros((len(texts), self.identity.width), np.float32)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            vectors[batch] = _compute(self.reader.read_passages([texts[number] for number in batch]))
        return vectors


def _compute(inputs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    ids, mask = inputs
    [vectors] = infer(MODEL, {"input_ids": ids, "attention_mask": mask}, ["passage_vectors"])
    return normalise(vectors)
