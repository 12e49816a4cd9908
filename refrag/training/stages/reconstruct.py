"""Reconstruction (paper §3, stage 1): the frozen decoder reads chunk embeddings and predicts their tokens.

It is teacher-forced. It differs from the paper's in two ways. The chunk size is drawn anew for every batch, so that one
checkpoint serves several. The decoder may train too: a small one does not find by itself what the vectors hold.
"""

import functools
import random
from dataclasses import replace

from refrag.context.chunking import PackedChunks
from refrag.model.checkpoint import Checkpoint
from refrag.teacher_forcing.batches import MixedBatch, MixedExample, Segment, collate_mixed, encoder_batch
from refrag.teacher_forcing.predict import encode, predict
from refrag.training.backbones import let_train
from refrag.training.curriculum import draw_num_chunks
from refrag.training.objective import Objective, Outcome
from refrag.training.settings import Reconstruct
from refrag.training.stages.windows import WindowSource


class ReconstructSource(WindowSource[Reconstruct]):
    """Source of texts to reconstruct; the examples of a batch share chunk size and number of chunks."""

    def draw(self, rng: random.Random, progress: float) -> MixedBatch:
        chunk_size = rng.choice(self.checkpoint.config.trained_chunk_sizes)
        samples_per_batch = functools.partial(num_windows, self.settings, chunk_size)
        num_chunks = draw_num_chunks(rng, self.settings.curriculum, progress, samples_per_batch)
        windows = [self.windows.draw(num_chunks * chunk_size) for _ in range(samples_per_batch(num_chunks))]
        return reconstruction_batch(self.checkpoint, windows, chunk_size)


class Reconstruction(Objective):
    """Loss of the reconstruction; encoder and projector train, and the decoder if the run says so."""

    def __init__(self, checkpoint: Checkpoint, settings: Reconstruct) -> None:
        super().__init__()
        self.encoder, self.projector, self.decoder = checkpoint.encoder, checkpoint.projector, checkpoint.decoder
        let_train(self.encoder)
        let_train(self.projector)
        let_train(self.decoder, settings.decoder_trains)

    def forward(self, batch: MixedBatch, rollout_seed: int | None = None) -> Outcome:
        assert batch.chunks is not None
        embeddings = self.projector(encode(self.encoder, batch.chunks))
        prediction = predict(self.decoder, batch, embeddings)
        return Outcome(prediction.loss, {"loss": prediction.loss.item(), "accuracy": prediction.accuracy})


def num_windows(settings: Reconstruct, chunk_size: int, num_chunks: int) -> int:
    """Return how many windows of `num_chunks` chunks make a batch; encoder and decoder both read every token."""
    return max(1, settings.tokens_per_step // (2 * num_chunks * chunk_size))


def reconstruction_batch(checkpoint: Checkpoint, windows: list[list[int]], chunk_size: int) -> MixedBatch:
    """Lay out each window as its chunk embeddings, then as the tokens to give back."""
    runs = [PackedChunks.cut([window], chunk_size) for window in windows]
    first_row, examples = 0, []
    for run, window in zip(runs, windows, strict=True):
        examples.append(MixedExample(run, [], [Segment(window, 1.0)], first_row))
        first_row += len(run)
    batch = collate_mixed(examples, checkpoint.decoder.vocab_size, checkpoint.chunker.frame.bos_ids)
    return replace(batch, chunks=encoder_batch(checkpoint.chunker, PackedChunks.of(*runs)))
