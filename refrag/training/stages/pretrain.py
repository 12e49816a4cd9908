"""Pretraining, where there is no pretrained decoder: plain text, and questions over plain passages.

First of all, random strings to repeat: to copy what stands before is what a pretrained decoder can do and what
answering and reconstruction rest on. A small decoder learns it suddenly, from half a million tokens of such strings or
from several millions of text. Then questions over one passage, and more as training proceeds; several stand one after
another behind the same passages.
"""

import random
from typing import Any

from refrag.model.checkpoint import Checkpoint
from refrag.model.decoder import Decoder
from refrag.training.batches import MixedBatch, MixedExample, Segment, collate_mixed
from refrag.training.curriculum import draw_num_passages
from refrag.training.data.contexts import ContextMaker
from refrag.training.data.tasks import Task
from refrag.training.data.text import open_windows
from refrag.training.decoding import predict
from refrag.training.objective import Objective, Outcome
from refrag.training.settings import Pretrain
from refrag.training.stages.questions import draw_contexts, plain_example

# Short answers would drown in the tokens of passages at equal weight.
ANSWER_WEIGHT, QUESTION_WEIGHT, CONTEXT_WEIGHT = 3.0, 0.2, 0.2
RECITAL_TOKENS = 32
# To find and copy a value in one passage comes first. Before that, more passages teach nothing, and what needs no
# copying, such as "yes" or "unknown", delays it.
FIRST_TASKS: tuple[Task, ...] = ("fact", "exact")
FIRST_TASKS_UNTIL = 0.4


class PretrainSource:
    def __init__(
        self, checkpoint: Checkpoint, settings: Pretrain, process_index: int = 0, num_processes: int = 1
    ) -> None:
        self.settings = settings
        self.chunker = checkpoint.chunker
        self.vocab_size = checkpoint.decoder.vocab_size
        self.bos_id = checkpoint.decoder_tokenizer.bos_token_id
        self.windows = open_windows(settings.sources, checkpoint.decoder_tokenizer, process_index, num_processes)

    def draw(self, rng: random.Random, progress: float) -> MixedBatch:
        if progress < self.settings.recital_share:
            examples = self.draw_recitals(rng)
        elif rng.random() < self.settings.text_share:
            examples = self.draw_text()
        else:
            tasks = self.settings.tasks
            if progress < FIRST_TASKS_UNTIL:
                tasks = [task for task in tasks if task in FIRST_TASKS] or tasks
            contexts = draw_contexts(
                ContextMaker.draw(rng, self.chunker),
                rng,
                draw_num_passages(rng, self.settings.max_passages, progress, one_until=FIRST_TASKS_UNTIL),
                self.settings.tokens_per_step,
                tasks,
            )
            examples = [plain_example(context, CONTEXT_WEIGHT, ANSWER_WEIGHT, QUESTION_WEIGHT) for context in contexts]
        return collate_mixed(examples, self.vocab_size, self.bos_id, self.settings.row_slots)

    def draw_text(self) -> list[MixedExample]:
        length = self.settings.window_tokens
        windows = [self.windows.draw(length) for _ in range(max(1, self.settings.tokens_per_step // length))]
        return [MixedExample([], [], [Segment(window, 1.0)]) for window in windows]

    def draw_recitals(self, rng: random.Random) -> list[MixedExample]:
        """Random tokens, then the same again: the second time each follows from what stands before."""
        count = max(1, self.settings.tokens_per_step // (2 * RECITAL_TOKENS))
        strings = [rng.choices(range(self.vocab_size), k=RECITAL_TOKENS) for _ in range(count)]
        return [MixedExample([], [], [Segment(string, 0.0), Segment(string, 1.0)]) for string in strings]

    def state(self) -> dict[str, Any]:
        return self.windows.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.windows.restore(state)


class Pretraining(Objective):
    """Next-token prediction with the decoder alone."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.decoder: Decoder = checkpoint.decoder
        self.decoder.requires_grad_(True)

    def forward(self, batch: MixedBatch, rollout_seed: int | None = None) -> Outcome:
        prediction = predict(self.decoder, batch)
        name = "answer_accuracy" if bool(prediction.is_answer.any()) else "text_accuracy"
        return Outcome(prediction.loss, {"loss": prediction.loss.item(), name: prediction.accuracy})
