"""Cases: held-out contexts in tokens, with the prompt after each and the target tokens that must follow.

A case knows which tokens are its evidence and can be cut into chunks of any size, so all conditions see the same cases.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from refrag.context.chunking import PackedChunks
from refrag.context.prepare import PreparedContext
from refrag.data.contexts import NUM_ENTITIES, ContextMaker, TokenisedContext
from refrag.data.sources import TextSource
from refrag.data.tasks import Task
from refrag.data.windows import heldout_windows
from refrag.data.world.world import Phrasing, make_world
from refrag.model.checkpoint import Checkpoint
from refrag.retrieval.bm25 import Strength


@dataclass(frozen=True)
class Case:
    """A context, and the tokens that the decoder must predict after it.

    passages: token ids of each passage.
    target_ids: the tokens to predict.
    prompt_ids: the tokens between the context and the target.
    question_ids: what the policy reads: the question, behind the newest of the earlier turns.
    evidence: numbers of the context tokens that the answer needs.
    """

    passages: list[list[int]]
    target_ids: list[int]
    prompt_ids: list[int] = field(default_factory=list)
    question_ids: list[int] = field(default_factory=list)
    evidence: list[int] = field(default_factory=list)
    task: str = "prose"
    answer: str = ""

    @property
    def token_ids(self) -> list[int]:
        return [token_id for passage in self.passages for token_id in passage]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.passages))

    def num_chunks(self, chunk_size: int) -> int:
        return sum(-(-len(passage) // chunk_size) for passage in self.passages)

    def chunks(self, chunk_size: int) -> PackedChunks:
        return PackedChunks.cut(self.passages, chunk_size)

    def evidence_chunks(self, chunk_size: int) -> list[int]:
        """Return the numbers of the chunks that hold a token of the evidence."""
        lengths = self.chunks(chunk_size).lengths
        return np.unique(np.arange(len(lengths)).repeat(lengths)[self.evidence]).tolist()

    def prepare(self, chunk_size: int) -> PreparedContext:
        """Return the context that the pipeline prepares for a request with these passages and this question."""
        return PreparedContext(
            chunks=self.chunks(chunk_size),
            question_ids=self.prompt_ids,
            question_chunks=PackedChunks.cut([self.question_ids], chunk_size),
        )


@dataclass(frozen=True)
class Asking:
    """The choice of questions and passages to draw; each world gives one question of each task.

    num_passages: has no effect on the questions, so that contexts of several lengths can be compared in pairs.
    num_entities: passages of each world; another number gives other questions.
    """

    tasks: Sequence[Task]
    num_questions: int
    num_passages: int
    strength: Strength = "strong"
    phrasing: Phrasing = field(default_factory=Phrasing)
    num_entities: int = NUM_ENTITIES


def draw_questions(checkpoint: Checkpoint, asking: Asking, seed: int) -> list[Case]:
    """Draw at least `num_questions` cases, as many of each task, about entities that training never saw."""
    chunker = checkpoint.with_chunk_size(1).chunker  # so that evidence is known to the token
    cases = []
    for number in range(-(-asking.num_questions // len(asking.tasks))):
        world = make_world(random.Random(f"{seed} {number}"), asking.num_entities, "heldout", asking.phrasing)
        maker = ContextMaker(world, chunker, asking.phrasing)
        for task in asking.tasks:
            rng = random.Random(f"{seed} {number} {task}")
            cases.append(_as_case(maker.ask_one(rng, task, asking.num_passages, asking.strength)))
    return cases


def draw_prose(
    source: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    context_tokens: int,
    target_tokens: int,
    count: int,
    seed: int,
) -> list[Case]:
    """Draw windows of held-out documents: the first tokens are the context, the others the target."""
    windows = heldout_windows(source, tokenizer, context_tokens + target_tokens, count, seed)
    return [Case([window[:context_tokens]], window[context_tokens:]) for window in windows]


def _as_case(context: TokenisedContext) -> Case:
    """Make a case of a context that was drawn with chunks of one token."""
    question = context.questions[0]
    passages = itertools.groupby(context.chunks, key=lambda chunk: chunk.passage)
    return Case(
        passages=[[chunk.token_ids[0] for chunk in chunks] for _, chunks in passages],
        target_ids=question.answer_ids,
        prompt_ids=question.prompt_ids,
        question_ids=[chunk.token_ids[0] for chunk in question.chunks],
        evidence=question.evidence_chunks,
        task=question.task,
        answer=question.answer,
    )
