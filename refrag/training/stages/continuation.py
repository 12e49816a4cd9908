"""Continual pre-training (paper §3, stages 2 and 3): a text as chunk embeddings, then its continuation as tokens.

With an expand fraction above zero, some chunks drawn at random stay tokens (selective compression). The plain form
shows the whole text as tokens: it is the same training for the decoder that we compare with.
"""

import functools
import random
from dataclasses import replace

from refrag.context.chunking import PackedChunks
from refrag.model.checkpoint import Checkpoint
from refrag.policies.budget import expansion_budget
from refrag.teacher_forcing.batches import MixedBatch, MixedExample, Segment, collate_mixed, encoder_batch
from refrag.teacher_forcing.predict import encode, predict
from refrag.training.backbones import let_train
from refrag.training.curriculum import draw_num_chunks
from refrag.training.objective import Objective, Outcome
from refrag.training.settings import Continue
from refrag.training.stages.windows import WindowSource


class ContinueSource(WindowSource[Continue]):
    """Source of texts to continue; the examples of a batch share chunk size, number of chunks and expand fraction."""

    def draw(self, rng: random.Random, progress: float) -> MixedBatch:
        chunk_size = rng.choice(self.checkpoint.config.trained_chunk_sizes)
        samples_per_batch = functools.partial(num_windows, self.settings, chunk_size)
        num_chunks = draw_num_chunks(rng, self.settings.curriculum, progress, samples_per_batch)
        length = num_chunks * chunk_size + self.settings.continuation_tokens
        windows = [self.windows.draw(length) for _ in range(samples_per_batch(num_chunks))]
        fraction = 1.0 if self.settings.form == "plain" else rng.choice(self.settings.expand_fractions)
        expanded = [rng.sample(range(num_chunks), expansion_budget(fraction, num_chunks)) for _ in windows]
        is_encoded = self.settings.form == "mixed"
        return continuation_batch(self.checkpoint, windows, chunk_size, num_chunks, expanded, is_encoded)


class Continuation(Objective):
    """Loss of the continuation; all but the policy trains, in the plain form the decoder alone."""

    def __init__(self, checkpoint: Checkpoint, form: str) -> None:
        super().__init__()
        self.decoder = checkpoint.decoder
        let_train(self.decoder)
        if form == "mixed":
            self.encoder, self.projector = checkpoint.encoder, checkpoint.projector
            let_train(self.encoder)
            let_train(self.projector)

    def forward(self, batch: MixedBatch, rollout_seed: int | None = None) -> Outcome:
        embeddings = None if batch.chunks is None else self.projector(encode(self.encoder, batch.chunks))
        prediction = predict(self.decoder, batch, embeddings)
        return Outcome(prediction.loss, {"loss": prediction.loss.item(), "accuracy": prediction.accuracy})


def num_windows(settings: Continue, chunk_size: int, num_chunks: int) -> int:
    """Return how many windows with a context of `num_chunks` chunks make a batch."""
    return max(1, settings.tokens_per_step // (num_chunks * chunk_size + settings.continuation_tokens))


def continuation_batch(
    checkpoint: Checkpoint,
    windows: list[list[int]],
    chunk_size: int,
    num_chunks: int,
    expanded: list[list[int]],
    is_encoded: bool = True,
) -> MixedBatch:
    """Lay out windows as prompts: the first `num_chunks` chunks of each as context, the rest of it to be predicted.

    expanded: numbers of the chunks of each window that stay tokens.
    is_encoded: whether the encoder reads the chunks. In the mixed form it reads them even where all stay tokens:
        processes that share its weights must call it equally often.
    """
    runs, examples = [], []
    for row, (window, numbers) in enumerate(zip(windows, expanded, strict=True)):
        run = PackedChunks.cut([window[: num_chunks * chunk_size]], chunk_size)
        runs.append(run)
        rest = Segment(window[num_chunks * chunk_size :], 1.0)
        examples.append(MixedExample(run, numbers, [rest], first_row=row * num_chunks))
    batch = collate_mixed(examples, checkpoint.decoder.vocab_size, checkpoint.chunker.frame.bos_ids)
    return replace(batch, chunks=encoder_batch(checkpoint.chunker, PackedChunks.of(*runs))) if is_encoded else batch
