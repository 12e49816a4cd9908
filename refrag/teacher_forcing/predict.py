"""What the decoder makes of a batch of mixed prompts: the loss of each predicted slot, and what follows from it."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from refrag.model.decoder import Decoder
from refrag.model.encoder import ChunkEncoder
from refrag.teacher_forcing.batches import EncoderBatch, MixedBatch

# R rows, S slots, T predicted slots of all rows, N chunks, E encoder width, D decoder width


@dataclass(frozen=True)
class Prediction:
    """One entry for each slot that has something to predict, all (T,)."""

    losses: Tensor
    weights: Tensor
    is_right: Tensor
    is_answer: Tensor
    example_ids: Tensor

    @property
    def loss(self) -> Tensor:
        """Weighted mean negative log-likelihood."""
        return (self.losses * self.weights).sum() / self.weights.sum()

    @property
    def accuracy(self) -> float:
        """Share of predicted tokens that are right; of answer tokens alone where there are any."""
        chosen = self.is_right[self.is_answer] if bool(self.is_answer.any()) else self.is_right
        return float(chosen.float().mean())

    def mean_loss_per_example(self, num_examples: int) -> Tensor:
        """Mean negative log-likelihood of the tokens of each example.  -> (num_examples,)"""
        totals = torch.zeros(num_examples, device=self.losses.device).index_add(0, self.example_ids, self.losses)
        counts = torch.bincount(self.example_ids, minlength=num_examples)
        return totals / counts.clamp(min=1)

    def all_right_per_example(self, num_examples: int) -> Tensor:
        """Whether every token of each example is right: greedy decoding would give just these.  -> (num_examples,)"""
        wrong = torch.bincount(self.example_ids[~self.is_right], minlength=num_examples)
        return wrong == 0


def predict(decoder: Decoder, batch: MixedBatch, chunk_embeddings: Tensor | None = None) -> Prediction:
    """Teacher-forced predictions; `chunk_embeddings` (N, D) where the batch has compressed chunks."""
    if chunk_embeddings is None:
        chunk_embeddings = torch.zeros(0, decoder.width, device=batch.input_ids.device)
    embedded = decoder.embed_prompt(batch.input_ids, chunk_embeddings)  # (R, S) -> (R, S, D)
    states = decoder.read(embedded, batch.position_ids)
    counted = batch.weights > 0
    logits = decoder.logits(states[counted]).float()  # only where there is something to predict
    labels = batch.labels[counted]
    return Prediction(
        losses=functional.cross_entropy(logits, labels, reduction="none"),
        weights=batch.weights[counted],
        is_right=logits.argmax(-1) == labels,
        is_answer=batch.is_answer[counted],
        example_ids=batch.example_ids[counted],
    )


def encode(encoder: ChunkEncoder, batch: EncoderBatch) -> Tensor:
    """Chunk vectors.  (N, L) -> (N, E)"""
    return encoder(batch.input_ids, batch.attention_mask)
