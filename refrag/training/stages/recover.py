"""Recovery, a stage before the paper's: a chunk's tokens are read back from its embedding without the decoder.

For place i of a chunk, z + M_i z + b_i is a query, where z is the chunk's embedding, M_i a matrix of low rank and b_i a
bias, and the logit of a token is the query times its embedding in the decoder. The loss tells each token from those of
the batch and from some drawn at random. So encoder and projector learn to keep the tokens, in far less time than
through the decoder, which reconstruction then teaches to find them. All M_i begin as 0: first z itself must come near
the token embeddings of its chunk, which the decoder reads already, and then what the places add tells order.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from refrag.context.chunking import NO_TOKEN, PackedChunks
from refrag.data.text import open_windows
from refrag.model.checkpoint import Checkpoint
from refrag.teacher_forcing.batches import EncoderBatch, encoder_batch
from refrag.teacher_forcing.movable import Movable
from refrag.teacher_forcing.predict import encode
from refrag.training.backbones import let_train
from refrag.training.objective import Objective, Outcome
from refrag.training.settings import Recover
from refrag.training.stages.windows import WindowSource

# C chunks, K tokens per chunk, T tokens of all chunks, N tokens to tell apart, D decoder width, r rank

# Of the queries before the first step, by which the fitted projector's embeddings tell most.
START_SCALE = 0.5
# Of frequent tokens over rare ones.
START_BIAS = 5.0
# Chunks that the projector is fitted to: several for each dimension of a usual vector.
NUM_FITTED = 3072


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


def first_chunks(checkpoint: Checkpoint, settings: Recover) -> PackedChunks:
    """Return chunks of the stage's text that the projector is fitted to before the first step."""
    chunk_size = checkpoint.config.chunk_size
    windows = open_windows(settings.sources, checkpoint.decoder_tokenizer)
    return PackedChunks.cut([windows.draw(chunk_size * NUM_FITTED)], chunk_size)


class Recovery(Objective):
    """Cross-entropy of the tokens at their places; encoder, projector and the readout train, which is then left."""

    token_embeddings: Tensor

    def __init__(self, checkpoint: Checkpoint, settings: Recover) -> None:
        super().__init__()
        self.encoder, self.projector = checkpoint.encoder, checkpoint.projector
        let_train(self.encoder)
        let_train(self.projector)
        self.exponent = settings.rarity_exponent
        embeddings = checkpoint.decoder.token_embeddings.weight.detach()
        scaled = embeddings * embeddings.pow(2).mean().rsqrt()
        self.readout = Readout(max(checkpoint.config.trained_chunk_sizes), settings.rank, scaled.mean(0))
        self.register_buffer("token_embeddings", scaled, persistent=False)

    def forward(self, batch: RecoverBatch, rollout_seed: int | None = None) -> Outcome:
        embeddings = self.projector(encode(self.encoder, batch.chunks))  # (C, D)
        logits = self.readout(embeddings, batch.token_ids.shape[1]) @ self.token_embeddings[batch.candidates].T
        is_token = batch.token_ids != NO_TOKEN
        labels = torch.searchsorted(batch.candidates, batch.token_ids[is_token])
        logits = logits[is_token]  # (C, K, N) -> (T, N)
        losses, weights = functional.cross_entropy(logits, labels, reduction="none"), rarity(labels, self.exponent)
        loss = (losses * weights).sum() / weights.sum()
        accuracy = float((logits.argmax(-1) == labels).float().mean())
        return Outcome(loss, {"loss": loss.item(), "accuracy": accuracy})


def rarity(token_ids: Tensor, exponent: float) -> Tensor:
    """Return a weight for each token, n ** −exponent for a token that occurs n times among them.  (T,) -> (T,)"""
    _, kinds, counts = torch.unique(token_ids, return_inverse=True, return_counts=True)
    return counts[kinds].float() ** -exponent


class Readout(nn.Module):
    """Queries ẑ + M_i ẑ + b_i, with a matrix M_i of low rank and a bias b_i for each place i in a chunk.

    ẑ is what tells z from the others of its batch, at unit length in each dimension. It lacks the direction of the mean
    token embedding, which is long and tells frequent tokens from rare ones; that is the bias's, which begins there. The
    scale is such that a chunk's tokens can be told apart from the start.
    """

    common: Tensor

    def __init__(self, chunk_size: int, rank: int, mean: Tensor) -> None:
        super().__init__()
        self.width = len(mean)
        common = functional.normalize(mean, dim=0)
        self.register_buffer("common", common, persistent=False)
        # As a factor near 1: the gradient of a small scale would drown all others.
        self.gain = nn.Parameter(torch.ones(()))
        self.down = nn.Parameter(torch.randn(chunk_size, self.width, rank) / self.width**0.5)
        self.up = nn.Parameter(torch.zeros(chunk_size, rank, self.width))
        self.bias = nn.Parameter(-START_BIAS * common.repeat(chunk_size, 1))

    def forward(self, embeddings: Tensor, chunk_size: int) -> Tensor:
        """Return the queries for the first `chunk_size` places.  (C, D) -> (C, K, D)"""
        apart = embeddings - embeddings.mean(0)
        apart = apart - (apart @ self.common).unsqueeze(1) * self.common
        directions = functional.rms_norm(apart, (self.width,))
        inner = torch.einsum("cd,kdr->ckr", directions, self.down[:chunk_size])
        queries = directions.unsqueeze(1) + torch.einsum("ckr,krd->ckd", inner, self.up[:chunk_size])
        return START_SCALE * self.gain / self.width**0.5 * (queries + self.bias[:chunk_size])
