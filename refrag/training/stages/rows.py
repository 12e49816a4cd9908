"""Questions from files, for the stages that ask questions: one draws contexts from them as it would from a world."""

import random
from pathlib import Path
from typing import cast

from refrag.context.chunking import Chunker
from refrag.data.contexts import TokenisedContext
from refrag.data.questions.contexts import RowContexts
from refrag.data.questions.read import Form, read_questions
from refrag.data.questions.row import QuestionRow
from refrag.training.settings import QuestionFile, Questions


class RowSource:
    """Rows of all files, and the contexts that are made of them; it has no position, for each draw stands alone."""

    def __init__(self, settings: Questions) -> None:
        self.settings = settings
        self.files = [_read(file) for file in settings.files]
        self._makers: dict[int, RowContexts] = {}

    def draw(self, rng: random.Random, chunker: Chunker, num_passages: int, num_tokens: int) -> list[TokenisedContext]:
        """Draw contexts of `num_passages` passages until they have `num_tokens` tokens; at least one."""
        maker = self._makers.setdefault(chunker.config.chunk_size, RowContexts(chunker))
        contexts = [self._draw_one(rng, maker, num_passages)]
        while sum(map(count_tokens, contexts)) < num_tokens:
            contexts.append(self._draw_one(rng, maker, num_passages))
        return contexts

    def _draw_one(self, rng: random.Random, maker: RowContexts, num_passages: int) -> TokenisedContext:
        rows = rng.choices(self.files, [file.weight for file in self.settings.files])[0]
        row, seed = rng.choice(rows), rng.getrandbits(32)
        if rng.random() < self.settings.answerless_share:
            return maker.make_answerless(row, rng.choice(rows), num_passages, seed)
        return maker.make(row, num_passages, seed)


def count_tokens(context: TokenisedContext) -> int:
    """Return the tokens of passages, questions and answers, each counted once."""
    return context.num_tokens + sum(len(each.prompt_ids) + len(each.answer_ids) for each in context.questions)


def _read(file: QuestionFile) -> list[QuestionRow]:
    passages = None if file.passages is None else Path(file.passages)
    return read_questions(Path(file.path), cast(Form | None, file.form), passages)
