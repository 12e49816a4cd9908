"""Predicts a batch of mixed prompts with teacher forcing: the loss of each predicted slot, and what follows from it."""

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
    """Predictions of all slots that have something to predict; each tensor has one entry per such slot, (T,).

    losses: negative log-likelihoods of the true tokens.
    weights: of the losses in `loss`.
    is_right: whether the true token is the likeliest.
    is_answer: whether the token belongs to an answer.
    example_ids: numbers of the examples that the slots belong to.
    divergences: KL(teacher ‖ decoder) before each of the tokens that have a teacher's distribution; of them alone.
    """

    losses: Tensor
    weights: Tensor
    is_right: Tensor
    is_answer: Tensor
    example_ids: Tensor
    divergences: Tensor

    @property
    def loss(self) -> Tensor:
        """Return the weighted mean of the negative log-likelihoods."""
        return (self.losses * self.weights).sum() / self.weights.sum()

    @property
    def accuracy(self) -> float:
        """Return the share of predicted tokens that are right, or of answer tokens alone where there are any."""
        chosen = self.is_right[self.is_answer] if bool(self.is_answer.any()) else self.is_right
        return float(chosen.float().mean())

    def mean_loss_per_example(self, num_examples: int) -> Tensor:
        """Return the mean negative log-likelihood of each example's tokens; 0 without tokens.  -> (num_examples,)"""
        totals = torch.zeros(num_examples, device=self.losses.device).index_add(0, self.example_ids, self.losses)
        counts = torch.bincount(self.example_ids, minlength=num_examples)
        return totals / counts.clamp(min=1)

    def all_right_per_example(self, num_examples: int) -> Tensor:
        """Return whether all tokens of each example are right: greedy decoding gives just these.  -> (num_examples,)"""
        wrong = torch.bincount(self.example_ids[~self.is_right], minlength=num_examples)
        return wrong == 0


def predict(decoder: Decoder, batch: MixedBatch, chunk_embeddings: Tensor | None = None) -> Prediction:
    """Predict each slot that has a weight; `chunk_embeddings` (N, D) may be None if all chunks are expanded."""
    if chunk_embeddings is None:
        chunk_embeddings = torch.zeros(0, decoder.width, device=batch.input_ids.device)
    embedded = decoder.embed_prompt(batch.input_ids, chunk_embeddings)  # (R, S) -> (R, S, D)
    states = decoder.read(embedded, batch.position_ids)
    counted = batch.weights > 0
    logits = decoder.logits(states[counted]).float()  # only where there is something to predict
    labels = batch.labels[counted]
    divergences = torch.zeros(0, device=logits.device)
    if batch.targets is not None and batch.target_rows is not None:
        rows = batch.target_rows[counted]
        divergences = batch.targets.select(rows[rows >= 0]).divergences(logits[rows >= 0])
    return Prediction(
        losses=functional.cross_entropy(logits, labels, reduction="none"),
        weights=batch.weights[counted],
        is_right=logits.argmax(-1) == labels,
        is_answer=batch.is_answer[counted],
        example_ids=batch.example_ids[counted],
        divergences=divergences,
    )


def encode(encoder: ChunkEncoder, batch: EncoderBatch) -> Tensor:
    """Return the chunk vectors of the batch.  (N, L) -> (N, E)"""
    return encoder(batch.input_ids, batch.attention_mask)
