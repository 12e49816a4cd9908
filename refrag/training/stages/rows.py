"""Contexts for the stages that ask questions: from files of questions, or from a made-up world of each batch's own."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from refrag.context.chunking import Chunker
from refrag.context.tokenizer import TextTokenizer
from refrag.data.contexts import ContextMaker, TokenisedContext
from refrag.data.questions.contexts import NOT_FOUND, RowContexts, is_stranger
from refrag.data.questions.read import Form, read_questions
from refrag.data.questions.row import QuestionRow
from refrag.errors import TrainingError
from refrag.model.checkpoint import Checkpoint
from refrag.training.settings import Finetune, Gains, Policy, QuestionFile, Questions, Select
from refrag.training.stages.questions import draw_contexts
from refrag.training.target_tensors import Target
from refrag.training.targets import read_targets

# Rows tried for one whose passages do not answer another's question.
NUM_TRIES = 20

AskingSettings = TypeVar("AskingSettings", Finetune, Select, Gains, Policy)


class ContextSource(Generic[AskingSettings]):
    """The part that sources of questions share; it has no position, for each draw stands alone."""

    def __init__(self, checkpoint: Checkpoint, settings: AskingSettings) -> None:
        self.checkpoint = checkpoint
        self.settings: AskingSettings = settings
        self.rows = None if settings.questions is None else RowSource(settings.questions, checkpoint.chunker)

    def draw_chunker(self, rng: random.Random) -> Chunker:
        """Return a chunker of one of the chunk sizes that the pair trains with."""
        return self.checkpoint.with_chunk_size(rng.choice(self.checkpoint.config.trained_chunk_sizes)).chunker

    def draw_contexts(self, rng: random.Random, chunker: Chunker, num_passages: int) -> Sequence[TokenisedContext]:
        """Draw contexts of `num_passages` passages, about `tokens_per_step` tokens in all."""
        settings = self.settings
        if self.rows is not None:
            return self.rows.draw(rng, chunker, num_passages, settings.tokens_per_step)
        maker = ContextMaker.draw(rng, chunker)
        return draw_contexts(maker, rng, num_passages, settings.tokens_per_step, settings.tasks, settings.rival_share)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Do nothing: there is no position to go back to."""


class RowSource:
    """Rows of all files, and the contexts that are made of them; it has no position, for each draw stands alone.

    chunker: of the pair, at any chunk size; the teacher of a file with targets must have its decoder's tokens too.
    Raises TrainingError for a row that cannot be trained on.
    """

    def __init__(self, settings: Questions, chunker: Chunker) -> None:
        self.settings = settings
        self.files = [_read(file, chunker) for file in settings.files]
        self.targets = [
            _read_targets(file, rows, chunker.decoder_tokenizer)
            for file, rows in zip(settings.files, self.files, strict=True)
        ]
        self._makers: dict[int, RowContexts] = {}

    def draw(self, rng: random.Random, chunker: Chunker, num_passages: int, num_tokens: int) -> list[TokenisedContext]:
        """Draw contexts of `num_passages` passages until they have `num_tokens` tokens; at least one.

        Those that a teacher answers have as many passages as it read, or more.
        """
        maker = self._makers.setdefault(chunker.config.chunk_size, RowContexts(chunker))
        contexts = [self._draw_one(rng, maker, num_passages)]
        while sum(map(count_tokens, contexts)) < num_tokens:
            contexts.append(self._draw_one(rng, maker, num_passages))
        return contexts

    def _draw_one(self, rng: random.Random, maker: RowContexts, num_passages: int) -> TokenisedContext:
        [number] = rng.choices(range(len(self.files)), [file.weight for file in self.settings.files])
        rows = self.files[number]
        row, seed = rng.choice(rows), rng.getrandbits(32)
        if target := self.targets[number].get(row.id):
            return taught(maker.make(row, max(num_passages, target.num_passages), seed), target)
        is_answerless = rng.random() < self.settings.answerless_share
        # What is asked of a document, such as a summary, any other document answers too.
        if is_answerless and not row.keeps_order and (other := _draw_stranger(rng, rows, row)):
            return maker.make_answerless(row, other, num_passages, seed)
        return maker.make(row, num_passages, seed)


def taught(context: TokenisedContext, target: Target) -> TokenisedContext:
    """Return the context with the teacher's answer to its question."""
    [question] = context.questions
    question = replace(question, answer_ids=target.token_ids, target=target.distribution)
    return replace(context, questions=[question])


def count_tokens(context: TokenisedContext) -> int:
    """Return the tokens of passages, questions and answers, each counted once."""
    return context.num_tokens + sum(len(each.prompt_ids) + len(each.answer_ids) for each in context.questions)


def _draw_stranger(rng: random.Random, rows: Sequence[QuestionRow], row: QuestionRow) -> QuestionRow | None:
    """Return a row whose passages do not answer `row`, or None if a few draws find none."""
    drawn = (rng.choice(rows) for _ in range(NUM_TRIES))
    return next((other for other in drawn if is_stranger(row, other)), None)


def _read(file: QuestionFile, chunker: Chunker) -> list[QuestionRow]:
    """Return the rows of a file; raise TrainingError if one of them cannot be trained on."""
    passages = None if file.passages is None else Path(file.passages)
    rows = read_questions(Path(file.path), cast(Form | None, file.form), passages)
    is_taught = file.targets is not None
    for row in rows:
        if not any(passage.content.strip() for passage in row.passages):
            raise TrainingError(f"{file.path}: row {row.id!r} has no passages, which training compresses; leave it out")
        if row.answerable and not row.answers and not is_taught:
            raise TrainingError(
                f"{file.path}: row {row.id!r} has no answers to train on; add them, or say that the passages hold none "
                "with answers: [] or answerable: false"
            )
        _refuse_long_question(file, row, chunker)
    return rows


def _refuse_long_question(file: QuestionFile, row: QuestionRow, chunker: Chunker) -> None:
    """Raise TrainingError for a question that is beyond the window without any context, which could be cut."""
    window, answer = chunker.config.max_prompt_slots, row.answers[0] if row.answers else NOT_FOUND
    needed = chunker.num_other_slots(chunker.question_ids(row.question)) + len(chunker.answer_ids(answer))
    if needed > window:
        raise TrainingError(
            f"{file.path}: row {row.id!r} needs {needed} slots for its question and answer alone, and max_prompt_slots "
            f"of the pair is {window}; shorten them, or leave the row out"
        )


def _read_targets(file: QuestionFile, rows: Sequence[QuestionRow], tokenizer: TextTokenizer) -> dict[str, Target]:
    return {} if file.targets is None else read_targets(Path(file.targets), rows, tokenizer)
