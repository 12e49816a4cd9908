"""A set of cases with everything that several conditions need of them, computed once: vectors, surprise, prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from refrag.context.chunking import Chunk
from refrag.evaluation.cases import Case
from refrag.evaluation.conditions import Condition
from refrag.evaluation.models import Models
from refrag.evaluation.reading import EmbeddedExample, read
from refrag.model.encoder import encode_in_batches
from refrag.teacher_forcing.batches import MixedExample, encoder_batch

# C chunks, Q question chunks, E encoder width, D decoder width

ENCODER_BATCH = 256


@dataclass(frozen=True)
class EncodedCase:
    chunks: list[Chunk]
    vectors: Tensor  # (C, E)
    question_vectors: Tensor  # (Q, E)
    embeddings: Tensor  # (C, D)


class CaseSet:
    """Cases that all conditions of a study share; `label` tells them from the study's other cases."""

    def __init__(self, models: Models, cases: Sequence[Case], seed: int, label: str = "") -> None:
        self.models, self.cases, self.seed, self.label = models, cases, seed, label
        self._encoded: dict[int, list[EncodedCase]] = {}
        self._token_losses: list[np.ndarray] | None = None

    def name_row(self, condition: Condition) -> str:
        name = condition.describe(self.models.plain_name)
        return f"{name}, {self.label}" if self.label else name

    def encoded(self, chunk_size: int) -> list[EncodedCase]:
        if chunk_size not in self._encoded:
            self._encoded[chunk_size] = self._encode(chunk_size)
        return self._encoded[chunk_size]

    def token_losses(self) -> list[np.ndarray]:
        """How much each context token surprises the plain decoder, reading the context from its beginning."""
        if self._token_losses is None:
            examples = [self.plain_example(case.token_ids, context_weight=1.0) for case in self.cases]
            readings = read(self.models.plain, examples, self.models.bos_id)
            self._token_losses = [
                _with_first(reading.losses, case.num_tokens) for reading, case in zip(readings, self.cases, strict=True)
            ]
        return self._token_losses

    def plain_example(self, token_ids: Sequence[int], context_weight: float = 0.0) -> EmbeddedExample:
        """Tokens as one expanded chunk, and nothing behind it."""
        chunks = [Chunk(tuple(token_ids), 0)] if token_ids else []
        example = MixedExample(chunks, range(len(chunks)), [], context_weight=context_weight)
        return EmbeddedExample(example, torch.zeros(0, self.models.plain.width))

    @torch.inference_mode()
    def _encode(self, chunk_size: int) -> list[EncodedCase]:
        checkpoint = self.models.checkpoint
        runs = [case.chunks(chunk_size) for case in self.cases]
        vectors = self._encode_runs(runs)
        questions = [Case([case.question_ids], []).chunks(chunk_size) for case in self.cases]
        return [
            EncodedCase(run, own, question, checkpoint.projector(own))
            for run, own, question in zip(runs, vectors, self._encode_runs(questions), strict=True)
        ]

    def _encode_runs(self, runs: Sequence[Sequence[Chunk]]) -> list[Tensor]:
        """Vectors of each run of chunks.  -> (C, E) for each"""
        encoder = self.models.checkpoint.encoder
        chunks = [chunk for run in runs for chunk in run]
        if not chunks:
            return [torch.zeros(0, encoder.width) for _ in runs]
        batch = encoder_batch(self.models.checkpoint.chunker, chunks)
        vectors = encode_in_batches(encoder, batch.input_ids, batch.attention_mask, ENCODER_BATCH)
        return list(vectors.split([len(run) for run in runs]))


def _with_first(losses: np.ndarray, num_tokens: int) -> np.ndarray:
    """Without BOS nothing predicts the first token; it counts as average."""
    return np.concatenate([np.full(num_tokens - len(losses), losses.mean()), losses])
