"""Teacher-forced reading of many prompts, in batches of alike length.

Greedy decoding gives exactly the target if and only if each of its tokens, EOS included, is the likeliest one after
the true ones before it. So exact match takes one forward pass for a whole batch, and generation is left for the
text of wrong answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from refrag.model.decoder import Decoder
from refrag.teacher_forcing.batches import MixedBatch, MixedExample, collate_mixed
from refrag.teacher_forcing.predict import predict

# C chunks, D decoder width, T predicted tokens

MAX_BATCH_SLOTS = 8192


@dataclass(frozen=True)
class EmbeddedExample:
    """embeddings (C, D): of all the example's chunks; without a compressed chunk there may be none."""

    example: MixedExample
    embeddings: Tensor

    @property
    def num_slots(self) -> int:
        """Of context and segments, without BOS."""
        expanded = sum(len(self.example.chunks[number]) for number in self.example.expanded)
        num_compressed = len(self.example.chunks) - len(self.example.expanded)
        return num_compressed + expanded + sum(len(segment.token_ids) for segment in self.example.segments)


@dataclass(frozen=True)
class Reading:
    """losses (T,): negative log-likelihood of each predicted token.

    Without BOS nothing predicts a prompt's first token, so it has none.
    """

    losses: np.ndarray
    is_right: bool


@torch.inference_mode()
def read(decoder: Decoder, examples: Sequence[EmbeddedExample], bos_id: int | None) -> list[Reading]:
    readings: dict[int, Reading] = {}
    for numbers in batch_by_length([example.num_slots for example in examples]):
        batch, embeddings = collate([examples[number] for number in numbers], decoder.vocab_size, bos_id)
        prediction = predict(decoder, batch, embeddings)
        counts = torch.bincount(prediction.example_ids, minlength=len(numbers)).tolist()
        parts = zip(prediction.losses.split(counts), prediction.is_right.split(counts), strict=True)
        for number, (losses, is_right) in zip(numbers, parts, strict=True):
            readings[number] = Reading(losses.numpy(), bool(is_right.all()))
    return [readings[number] for number in range(len(examples))]


def collate(examples: Sequence[EmbeddedExample], vocab_size: int, bos_id: int | None) -> tuple[MixedBatch, Tensor]:
    """One row for each example, and the chunk embeddings of all of them."""
    placed, first_row = [], 0
    for one in examples:
        placed.append(replace(one.example, first_row=first_row))
        first_row += len(one.embeddings)
    return collate_mixed(placed, vocab_size, bos_id), torch.cat([one.embeddings for one in examples])


def batch_by_length(lengths: Sequence[int], max_slots: int = MAX_BATCH_SLOTS) -> list[list[int]]:
    """Numbers of the prompts in each batch, the longest first, so that hardly a slot is padding."""
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > max_slots:
            batches.append([])
        batches[-1].append(number)
    return batches
