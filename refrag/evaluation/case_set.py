"""Cases that all conditions of a study share; chunk vectors and token losses are computed once for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from refrag.context.chunking import PackedChunks
from refrag.context.prepare import PreparedContext
from refrag.decoders.base import MixedPrompt
from refrag.evaluation.cases import Case
from refrag.evaluation.conditions import Condition
from refrag.evaluation.models import Models
from refrag.evaluation.reading import TargetedPrompt, read
from refrag.pipeline import Pipeline
from refrag.prompt import lay_out_prompt

# C chunks, Q question chunks, E encoder width


@dataclass(frozen=True)
class EncodedCase:
    """A case at one chunk size, encoded by the pipeline but without selected chunks."""

    context: PreparedContext
    vectors: Tensor  # (C, E)
    question_vectors: Tensor  # (Q, E)


class CaseSet:
    """The cases of a study's conditions; `label` tells their rows from those of other cases in the same study.

    Cases without a question are read as training lays out prose: in no chat, which would leave a user's turn open.
    """

    def __init__(self, models: Models, cases: Sequence[Case], seed: int, label: str = "") -> None:
        self.models = models if any(case.prompt_ids for case in cases) else models.without_chat()
        self.cases, self.seed, self.label = cases, seed, label
        self._encoded: dict[int, list[EncodedCase]] = {}
        self._token_losses: list[np.ndarray] | None = None

    def name_row(self, condition: Condition) -> str:
        name = condition.describe(self.models.plain_name)
        return f"{name}, {self.label}" if self.label else name

    def pipeline(self, chunk_size: int) -> Pipeline:
        """Return the steps of the served pipeline at this chunk size."""
        return Pipeline(self.models.checkpoint.with_chunk_size(chunk_size))

    def encoded(self, chunk_size: int) -> list[EncodedCase]:
        """Return each case's chunks and vectors as a server that cuts chunks of this size would have them."""
        if chunk_size not in self._encoded:
            pipeline, contexts = self.pipeline(chunk_size), [case.prepare(chunk_size) for case in self.cases]
            self._encoded[chunk_size] = [EncodedCase(context, *pipeline.encode(context)) for context in contexts]
        return self._encoded[chunk_size]

    def token_losses(self) -> list[np.ndarray]:
        """Return each context token's loss under the plain decoder, which reads the context from its start."""
        if self._token_losses is None:
            prompts = [self.plain_prompt([], case.token_ids) for case in self.cases]
            readings = read(self.models.plain, prompts)
            self._token_losses = [
                _with_first(reading.losses, case.num_tokens) for reading, case in zip(readings, self.cases, strict=True)
            ]
        return self._token_losses

    def plain_prompt(self, token_ids: Sequence[int], target_ids: Sequence[int]) -> TargetedPrompt:
        """Return a prompt of these tokens for the plain decoder, without any chunk, compressed or expanded."""
        plain, head_ids = self.models.plain, self.models.checkpoint.chunker.frame.head_ids
        prompt = lay_out_prompt(PackedChunks.cut([], 1), (), token_ids, plain.vocab_size, head_ids)
        rows = torch.zeros(0, plain.width)
        return TargetedPrompt(MixedPrompt(torch.from_numpy(prompt.input_ids).long(), rows), target_ids)


def _with_first(losses: np.ndarray, num_tokens: int) -> np.ndarray:
    """Return the losses with their mean put in for the first token, which nothing predicts without BOS."""
    return np.concatenate([np.full(num_tokens - len(losses), losses.mean()), losses])
