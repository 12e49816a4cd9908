"""Pretraining, where there is no pretrained decoder: plain text, and questions over plain passages.

It begins with random strings to repeat. A pretrained decoder can copy what stands before; answering and reconstruction
rest on it. A small decoder learns it suddenly, from half a million tokens of such strings, or from several million
tokens of text. Next come questions over one passage; then over a few passages of one kind, told apart by names alone;
then over more and more passages as a retriever finds them. Several questions stand one after another behind the same
passages.
"""

import random
from collections.abc import Sequence

from refrag.data.contexts import ContextMaker, TokenisedContext
from refrag.data.tasks import SINGLE_TASKS
from refrag.model.checkpoint import Checkpoint
from refrag.model.decoder import Decoder
from refrag.teacher_forcing.batches import MixedBatch, MixedExample, Segment, collate_mixed
from refrag.teacher_forcing.predict import predict
from refrag.training.curriculum import passage_counts
from refrag.training.objective import Objective, Outcome
from refrag.training.settings import Pretrain
from refrag.training.stages.questions import draw_contexts, plain_example
from refrag.training.stages.windows import WindowSource

# At equal weight short answers would count for little beside the many tokens of the passages.
ANSWER_WEIGHT, QUESTION_WEIGHT, CONTEXT_WEIGHT = 3.0, 0.2, 0.2
RECITAL_TOKENS = 32
# Finding and copying a value in one passage comes first. Until the decoder can do it, more passages teach nothing, and
# answers that need no copying, such as "yes" or "unknown", delay it.
SINGLE_TASKS_UNTIL = 0.25
# Telling entities apart comes next. Millions of tokens of passages as a retriever finds them do not teach it, because
# there any value of the right sort is a good guess.
RIVALS_UNTIL, MOST_RIVALS = 0.65, 4


class PretrainSource(WindowSource[Pretrain]):
    """Source of random strings to repeat, then of plain text and of questions over plain passages."""

    def draw(self, rng: random.Random, progress: float) -> MixedBatch:
        frame = self.checkpoint.chunker.frame
        if progress < self.settings.recital_share:
            return self._collate(self.draw_recitals(rng), frame.bos_ids)
        if rng.random() < self.settings.text_share:
            return self._collate(self.draw_text(), frame.bos_ids)
        contexts = self.draw_questions(rng, progress)
        examples = [plain_example(context, CONTEXT_WEIGHT, ANSWER_WEIGHT, QUESTION_WEIGHT) for context in contexts]
        return self._collate(examples, frame.head_ids, self.checkpoint.config.max_prompt_slots)

    def draw_questions(self, rng: random.Random, progress: float) -> Sequence[TokenisedContext]:
        settings, tasks, rival_share = self.settings, self.settings.tasks, self.settings.rival_share
        maker = ContextMaker.draw(rng, self.checkpoint.chunker)
        num_passages = rng.choice(pretraining_counts(settings, progress))
        if progress < SINGLE_TASKS_UNTIL:
            tasks, rival_share = [task for task in tasks if task in SINGLE_TASKS] or tasks, 0.0
        elif progress < RIVALS_UNTIL:
            rival_share = 1.0
        return draw_contexts(maker, rng, num_passages, settings.tokens_per_step, tasks, rival_share)

    def draw_text(self) -> list[MixedExample]:
        length = self.settings.window_tokens
        windows = [self.windows.draw(length) for _ in range(max(1, self.settings.tokens_per_step // length))]
        return [MixedExample([], [], [Segment(window, 1.0)]) for window in windows]

    def draw_recitals(self, rng: random.Random) -> list[MixedExample]:
        """Draw random tokens, each string twice in a row, so that its second half can be predicted from the first."""
        count = max(1, self.settings.tokens_per_step // (2 * RECITAL_TOKENS))
        strings = [rng.choices(range(self.checkpoint.decoder.vocab_size), k=RECITAL_TOKENS) for _ in range(count)]
        return [MixedExample([], [], [Segment(string, 0.0), Segment(string, 1.0)]) for string in strings]

    def _collate(
        self, examples: Sequence[MixedExample], head_ids: Sequence[int], window: int | None = None
    ) -> MixedBatch:
        return collate_mixed(examples, self.checkpoint.decoder.vocab_size, head_ids, self.settings.row_slots, window)


def pretraining_counts(settings: Pretrain, progress: float) -> range:
    """Return the equally likely numbers of passages for questions at this progress."""
    most = settings.max_passages
    if progress < SINGLE_TASKS_UNTIL:
        return range(1, 2)
    if progress < RIVALS_UNTIL:
        return range(min(2, most), 1 + min(MOST_RIVALS, most))
    return passage_counts(most, progress)


class Pretraining(Objective):
    """Loss of next-token prediction; the decoder alone trains."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.decoder: Decoder = checkpoint.decoder
        self.decoder.requires_grad_(True)

    def forward(self, batch: MixedBatch, rollout_seed: int | None = None) -> Outcome:
        prediction = predict(self.decoder, batch)
        name = "answer_accuracy" if bool(prediction.is_answer.any()) else "text_accuracy"
        return Outcome(prediction.loss, {"loss": prediction.loss.item(), name: prediction.accuracy})
