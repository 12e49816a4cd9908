"""Makes contexts of the made-up world: retrieved passages cut into chunks, and tokenised questions over them."""

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from refrag.context.chunking import Chunker, PackedChunks
from refrag.data.spans import Spans
from refrag.data.tasks import (
    SINGLE_TASKS,
    TASKS,
    UNKNOWN,
    Question,
    Task,
    ask,
    ask_about,
    ask_after,
    draw_turns,
    single_task,
)
from refrag.data.world.world import Phrasing, Split, World, make_world
from refrag.retrieval.bm25 import Retriever, Strength

if TYPE_CHECKING:
    from refrag.teacher_forcing.distribution import TopDistribution

NUM_ENTITIES = 150
FOLLOWUP_SHARE = 0.3
WEAK_SHARE = 0.2
# Questions drawn for each further one that is wanted: passages may lack the matter for a task.
TRIES = 8
# Tasks of further questions over a context; the other tasks need more than its passages.
DENSE_TASKS: tuple[Task, ...] = ("fact", "fact", "exact", "exact", "yesno", "multihop", "comparison", "unanswerable")


@dataclass(frozen=True)
class TokenisedQuestion:
    """Question in text and in tokens.

    task: one of the made-up world's, or what a file of questions says.
    prompt_ids: all that follows the chunks: earlier turns that stay text, and the question inside its template.
    answer_ids: the answer with EOS.
    chunks: of what the policy reads: the question without its template, behind the newest of the earlier turns.
    evidence_chunks: numbers of the context's chunks that an answer needs; none where it has no answer.
    target: a teacher's distribution before each token of the answer; None without a teacher.
    """

    task: str
    text: str
    answer: str
    prompt_ids: list[int]
    answer_ids: list[int]
    chunks: PackedChunks
    evidence_chunks: list[int]
    target: "TopDistribution | None" = None


@dataclass(frozen=True)
class TokenisedContext:
    """Context with the questions asked over it; earlier turns of a dialogue stand behind the retrieved passages."""

    passages: list[str]
    chunks: PackedChunks
    questions: list[TokenisedQuestion]

    @property
    def num_tokens(self) -> int:
        return self.chunks.num_tokens


class ContextMaker:
    """Maker of contexts and questions from one world, through one retriever."""

    def __init__(self, world: World, chunker: Chunker, phrasing: Phrasing | None = None) -> None:
        self.world, self.chunker, self.phrasing = world, chunker, phrasing or Phrasing()
        self.retriever = Retriever(world.passages)
        self.everything = range(len(world.passages))
        self.spans = Spans(chunker)

    @classmethod
    def draw(cls, rng: random.Random, chunker: Chunker, split: Split = "train") -> "ContextMaker":
        """Make a maker for a new world of NUM_ENTITIES entities with names of `split`."""
        return cls(make_world(rng, NUM_ENTITIES, split), chunker)

    def ask_one(
        self,
        rng: random.Random,
        task: Task,
        num_passages: int,
        strength: Strength = "strong",
        is_honest: bool = False,
    ) -> TokenisedContext:
        """Ask one question of the task over passages retrieved for it; what an answer needs may not be among them.

        Then the answer is "unknown" if `is_honest`, else the true one, which a better retrieval would have allowed.
        """
        retrieved, question = self._retrieve_for(rng, task, num_passages, strength)
        question = answerable(question, retrieved) if is_honest else question
        return self.tokenise(retrieved, question.history, [question])

    def ask_many(
        self, rng: random.Random, num_passages: int, num_questions: int, tasks: Sequence[Task] = TASKS
    ) -> TokenisedContext:
        """Ask a question over passages retrieved for it, then further ones over the same passages, all of `tasks`.

        There are fewer than `num_questions` where the passages have too little matter for the tasks.
        """
        task = rng.choice(tasks)
        strength: Strength = "weak" if rng.random() < WEAK_SHARE else "strong"
        retrieved, question = self._retrieve_for(rng, task, num_passages, strength)
        questions, history = [question], question.history
        if (
            "followup" in tasks
            and not history
            and rng.random() < FOLLOWUP_SHARE
            and (turns := draw_turns(rng, self.world, retrieved, self.phrasing))
        ):
            questions.append(ask_after(rng, self.world, turns, self.phrasing))
            history = turns.texts
        dense_tasks = [each for each in DENSE_TASKS if each in tasks]
        draws = (
            ask(rng, rng.choice(dense_tasks), self.world, retrieved, self.phrasing)
            for _ in range(TRIES * num_questions if dense_tasks else 0)
        )
        questions += itertools.islice(filter(None, draws), max(0, num_questions - len(questions)))
        rng.shuffle(questions)
        return self.tokenise(retrieved, history, [answerable(one, retrieved) for one in questions])

    def ask_among_rivals(
        self, rng: random.Random, num_passages: int, num_questions: int, tasks: Sequence[Task] = SINGLE_TASKS
    ) -> TokenisedContext:
        """Ask for single facts over passages about entities of one kind, of attributes that several passages tell.

        So nothing but the entity's name leads to the answer, as it must among passages that a good retriever finds.
        """
        fitting = [[fact for fact in facts if single_task(fact) in tasks] for facts in self.world.facts]
        telling = [number for number in self.everything if fitting[number]]
        kind = self.world.entities[rng.choice(telling)].kind
        peers = [number for number in telling if self.world.entities[number].kind.name == kind.name]
        passages = rng.sample(peers, min(num_passages, len(peers)))
        facts = [fact for number in passages for fact in fitting[number]]
        counts = Counter(fact.attribute.name for fact in facts)
        contested = [fact for fact in facts if counts[fact.attribute.name] > 1] or facts
        chosen = rng.choices(contested, k=num_questions)
        return self.tokenise(passages, [], [ask_about(rng, self.world, fact, self.phrasing) for fact in chosen])

    def tokenise(
        self, passages: Sequence[int], history: Sequence[str], questions: Sequence[Question]
    ) -> TokenisedContext:
        """Cut these passages, and behind them the turns of `history`, into chunks, and tokenise the questions."""
        texts = [*(self.world.passages[number] for number in passages), *history]
        chunks = PackedChunks.cut([self.spans.token_ids(text) for text in texts], self.chunker.config.chunk_size)
        first_chunks = np.searchsorted(chunks.passages, np.arange(len(texts))).tolist()
        places = {number: place for place, number in enumerate(passages)}
        tokenised = []
        for question in questions:
            evidence: set[int] = set()
            for span in question.evidence:
                found = len(passages) + span.passage if span.in_history else places.get(span.passage)
                if found is not None:
                    covered = self.spans.covered_chunks(texts[found], span.start, span.stop)
                    evidence |= {first_chunks[found] + number for number in covered}
            # As a server's policies read it where no chat template is: behind the newest turn.
            read = " ".join([*history[-1:], question.text])
            tokenised.append(self._tokenise_question(question, read, sorted(evidence)))
        return TokenisedContext(texts, chunks, tokenised)

    def _retrieve_for(
        self, rng: random.Random, task: Task, num_passages: int, strength: Strength
    ) -> tuple[list[int], Question]:
        """Return passages in random order, so that no place among them gives the answer away, and the question."""
        if task == "summary":
            document = rng.sample(self.everything, max(2, min(num_passages, 6)))
            return document, self._ask(rng, "summary", document)
        question = self._ask(rng, task, self.everything)
        query = " ".join([*question.history, question.text])
        retrieved = self.retriever.retrieve(rng, query, num_passages, strength)
        rng.shuffle(retrieved)
        return retrieved, question

    def _ask(self, rng: random.Random, task: Task, passages: Sequence[int]) -> Question:
        question = ask(rng, task, self.world, passages, self.phrasing)
        assert question is not None, f"a world of {len(self.everything)} passages has matter for every task"
        return question

    def _tokenise_question(self, question: Question, read: str, evidence_chunks: list[int]) -> TokenisedQuestion:
        return TokenisedQuestion(
            task=question.task,
            text=question.text,
            answer=question.answer,
            prompt_ids=self.chunker.question_ids(question.text),
            answer_ids=self.chunker.answer_ids(question.answer),
            chunks=self.chunker.question_chunks(read),
            evidence_chunks=evidence_chunks,
        )


def answerable(question: Question, passages: Sequence[int]) -> Question:
    """Return the question, with "unknown" for its answer where not all of its evidence is in the context."""
    present = set(passages)
    if all(span.in_history or span.passage in present for span in question.evidence):
        return question
    return replace(question, answer=UNKNOWN, evidence=[])
