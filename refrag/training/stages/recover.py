"""Recovery, a stage before the paper's: a chunk's tokens are read back from its embedding without the decoder.

For place i of a chunk, a matrix M_i of low rank turns the embedding z into a query, and token t has the logit
e_t · M_i z, where e_t is its embedding in the decoder. The loss tells each token from those of the batch and from some
drawn at random. So encoder and projector learn to keep the tokens, in an order of magnitude less time than through the
decoder, which reconstruction then teaches to find them.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from refrag.context.chunking import NO_TOKEN, PackedChunks
from refrag.model.checkpoint import Checkpoint
from refrag.teacher_forcing.batches import EncoderBatch, encoder_batch
from refrag.teacher_forcing.movable import Movable
from refrag.teacher_forcing.predict import encode
from refrag.training.backbones import let_train
from refrag.training.objective import Objective, Outcome
from refrag.training.settings import Recover
from refrag.training.stages.windows import WindowSource

# C chunks, K tokens per chunk, T tokens of all chunks, N tokens to tell apart, D decoder width, r rank


@dataclass(frozen=True)
class RecoverBatch(Movable):
    """Chunks, and the tokens to read back from each of them.

    token_ids (C, K): NO_TOKEN behind a short chunk. candidates (N,): tokens to tell apart, in ascending order.
    """

    chunks: EncoderBatch
    token_ids: Tensor
    candidates: Tensor


class RecoverSource(WindowSource[Recover]):
    """Source of single chunks."""

    def draw(self, rng: random.Random, progress: float) -> RecoverBatch:
        chunk_size = rng.choice(self.checkpoint.config.trained_chunk_sizes)
        window = self.windows.draw(max(1, self.settings.tokens_per_step // chunk_size) * chunk_size)
        chunks = PackedChunks.cut([window], chunk_size)
        vocabulary = range(self.checkpoint.decoder.vocab_size)
        negatives = rng.sample(vocabulary, min(self.settings.num_negatives, len(vocabulary)))
        candidates = torch.tensor(sorted({*window, *negatives}))
        return RecoverBatch(
            encoder_batch(self.checkpoint.chunker, chunks), torch.from_numpy(chunks.token_ids).long(), candidates
        )


class Recovery(Objective):
    """Cross-entropy of the tokens at their places; encoder, projector and the readout train, which is then left."""

    scale: Tensor
    token_embeddings: Tensor

    def __init__(self, checkpoint: Checkpoint, settings: Recover) -> None:
        super().__init__()
        self.encoder, self.projector = checkpoint.encoder, checkpoint.projector
        let_train(self.encoder)
        let_train(self.projector)
        width = checkpoint.decoder.width
        self.readout = Readout(max(checkpoint.config.trained_chunk_sizes), width, settings.rank)
        embeddings = checkpoint.decoder.token_embeddings.weight.detach()
        self.register_buffer("scale", embeddings.pow(2).mean().rsqrt(), persistent=False)
        self.register_buffer("token_embeddings", embeddings * self.scale, persistent=False)

    def forward(self, batch: RecoverBatch, rollout_seed: int | None = None) -> Outcome:
        embeddings = self.projector(encode(self.encoder, batch.chunks)) * self.scale  # (C, D)
        logits = self.readout(embeddings, batch.token_ids.shape[1]) @ self.token_embeddings[batch.candidates].T
        is_token = batch.token_ids != NO_TOKEN
        labels = torch.searchsorted(batch.candidates, batch.token_ids[is_token])
        logits = logits[is_token]  # (C, K, N) -> (T, N)
        loss = functional.cross_entropy(logits, labels)
        accuracy = float((logits.argmax(-1) == labels).float().mean())
        return Outcome(loss, {"loss": loss.item(), "accuracy": accuracy})


class Readout(nn.Module):
    """Matrices M_i of low rank, one for each place in a chunk."""

    def __init__(self, chunk_size: int, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(chunk_size, width, rank) / width**0.5)
        self.up = nn.Parameter(torch.randn(chunk_size, rank, width) / (rank * width) ** 0.5)

    def forward(self, embeddings: Tensor, chunk_size: int) -> Tensor:
        """Return the queries for the first `chunk_size` places.  (C, D) -> (C, K, D)"""
        inner = torch.einsum("cd,kdr->ckr", embeddings, self.down[:chunk_size])
        return torch.einsum("ckr,krd->ckd", inner, self.up[:chunk_size])
