"""Makes contexts of question rows: passages cut into chunks, and the question with its answer in tokens."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import filterfalse

import numpy as np

from refrag.context.chunking import Chunker, PackedChunks
from refrag.context.conversation import DEFAULT_TEXT_TOKENS, Room, as_passage, lay_out_history, policy_question
from refrag.data.contexts import TokenisedContext, TokenisedQuestion
from refrag.data.questions.arrange import arrange
from refrag.data.questions.evidence import find_answer, holds_any, is_verdict
from refrag.data.questions.row import QuestionRow
from refrag.data.questions.turns import earlier_pairs
from refrag.data.scripts import count_words
from refrag.data.spans import Spans
from refrag.history import Pair

# What a decoder is trained to answer where the passages do not.
NOT_FOUND = "Not in the passages."
# Begins a sentence of its own, such as "Yes, it does."
JUDGEMENT = re.compile(r"\s*(yes|no|true|false), ", re.IGNORECASE)
# Longer answers are put in words of their own, so that not finding them in a passage tells nothing.
LONGEST_QUOTED_WORDS = 10


class RowContexts:
    """Contexts of question rows, each with one question.

    Its evidence are the chunks that hold an accepted answer, in a passage that the row names as evidence, or in any
    passage if it names none, and the chunks beside them. Where the answer's words stand nowhere, as with yes and no,
    all chunks of the named passages are.
    """

    def __init__(self, chunker: Chunker) -> None:
        self.chunker, self.spans = chunker, Spans(chunker)

    def make(self, row: QuestionRow, num_passages: int, seed: int) -> TokenisedContext:
        """Return the row over `num_passages` of its passages, those with the evidence among them, in random order.

        A document stays whole, and all of the evidence is among them, though it be more. The answer says that there is
        none where the row is not answerable, and where it names no evidence and its short answer stands in none of the
        chosen passages of a search.
        """
        count = max(num_passages, len(row.gold or ()))
        arranged = arrange(row, None if row.keeps_order else count, seed, keep_gold=True)
        return self._tokenise(arranged, is_answered=_is_answered(arranged))

    def make_answerless(self, row: QuestionRow, other: QuestionRow, num_passages: int, seed: int) -> TokenisedContext:
        """Return the row's question over passages of another row, which must not answer it (`is_stranger`)."""
        stranger = replace(row, passages=other.passages, gold=(), keeps_order=other.keeps_order)
        return self._tokenise(arrange(stranger, num_passages, seed), is_answered=False)

    def _tokenise(self, row: QuestionRow, is_answered: bool) -> TokenisedContext:
        texts = [passage.content for passage in row.passages]
        chunks = PackedChunks.cut([self.spans.token_ids(text) for text in texts], self.chunker.config.chunk_size)
        answer, pairs = row.answers[0] if is_answered else NOT_FOUND, earlier_pairs(row)
        question = TokenisedQuestion(
            task=row.task,
            text=row.question,
            answer=answer,
            prompt_ids=self.chunker.question_ids(row.question),
            answer_ids=self.chunker.answer_ids(answer),
            chunks=self.chunker.question_chunks(policy_question(row.question, pairs, self.chunker)),
            evidence_chunks=self._evidence(row, texts, chunks) if is_answered else [],
        )
        context = TokenisedContext(texts, chunks, [question])
        return self._add_turns(context, pairs) if pairs else context

    def _add_turns(self, context: TokenisedContext, pairs: Sequence[Pair]) -> TokenisedContext:
        """Return the context with the earlier turns of its question, laid out as a server does."""
        [question], chunks, config = context.questions, context.chunks, self.chunker.config
        needed = self.chunker.num_other_slots(question.prompt_ids) + len(question.answer_ids)
        left = config.max_prompt_slots - needed
        # Where the passages fill the window by themselves, these give way to the newest turns.
        room = Room(max(left - len(chunks), min(left, DEFAULT_TEXT_TOKENS)))
        history = lay_out_history(pairs, self.chunker, room)
        turns, num_cut = history.read.chunks, history.num_cut
        older = pairs[num_cut : num_cut + len(set(turns.passages.tolist()))]
        return TokenisedContext(
            passages=[*context.passages, *(as_passage(pair, config.template) for pair in older)],
            chunks=PackedChunks.of(chunks, PackedChunks(turns.token_ids, turns.passages + len(context.passages))),
            questions=[replace(question, prompt_ids=history.text_ids + question.prompt_ids)],
        )

    def _evidence(self, row: QuestionRow, texts: Sequence[str], chunks: PackedChunks) -> list[int]:
        starts = np.searchsorted(chunks.passages, np.arange(len(texts) + 1)).tolist()
        evidence: set[int] = set()
        for place in range(len(texts)) if row.gold is None else row.gold:
            for number in self._holding(texts[place], row.answers):
                near = range(starts[place] + number - 1, starts[place] + number + 2)
                evidence.update(chunk for chunk in near if starts[place] <= chunk < starts[place + 1])
        if not evidence and row.gold:
            return [chunk for place in row.gold for chunk in range(starts[place], starts[place + 1])]
        return sorted(evidence)

    def _holding(self, text: str, answers: Sequence[str]) -> Iterator[int]:
        """Yield the numbers of the passage's chunks that hold a part of an accepted answer."""
        for answer in filterfalse(is_verdict, answers):
            for start, stop in find_answer(text, answer):
                yield from self.spans.covered_chunks(text, start, stop)


def is_stranger(row: QuestionRow, other: QuestionRow) -> bool:
    """Return whether no passage of `other` can answer `row`: none is shared, and none holds an accepted answer.

    Nor do the turns before the question, which stay beside it.
    """
    own = {passage.id for passage in row.passages}
    passages = other.passages
    return (
        bool(passages)
        and own.isdisjoint(passage.id for passage in passages)
        and not any(holds_any(passage.content, row.answers) for passage in passages)
        and not any(holds_any(turn, row.answers) for _, turn in row.history)
    )


def _is_answered(row: QuestionRow) -> bool:
    """Return whether an arranged row's passages answer it, as far as the row and its texts tell.

    Where it names no evidence, what it says holds if a document is left whole, or if no text could tell better.
    """
    if not row.answerable or not row.answers:
        return False
    if row.gold or (row.gold is None and (row.keeps_order or not any(map(_may_be_quoted, row.answers)))):
        return True
    return any(holds_any(passage.content, row.answers) for passage in row.passages)


def _may_be_quoted(answer: str) -> bool:
    is_judgement = is_verdict(answer) or JUDGEMENT.match(answer)
    return not is_judgement and count_words(answer) <= LONGEST_QUOTED_WORDS
