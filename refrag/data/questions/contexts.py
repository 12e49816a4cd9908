"""Makes contexts of question rows: passages cut into chunks, and the question with its answer in tokens."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from refrag.context.chunking import Chunker, PackedChunks
from refrag.data.contexts import TokenisedContext, TokenisedQuestion
from refrag.data.questions.arrange import arrange
from refrag.data.questions.row import QuestionRow
from refrag.data.spans import Spans

# What a decoder is trained to answer where the passages do not.
NOT_FOUND = "Not in the passages."


class RowContexts:
    """Contexts of question rows, each with one question.

    Its evidence are the chunks that hold an accepted answer, in a passage that the row names as evidence, or in any
    passage if it names none, and the chunks beside them. Where the answer's words stand nowhere, as with yes and no,
    all chunks of the named passages are.
    """

    def __init__(self, chunker: Chunker) -> None:
        self.chunker, self.spans = chunker, Spans(chunker)

    def make(self, row: QuestionRow, num_passages: int, seed: int) -> TokenisedContext:
        """Return the row over `num_passages` of its passages, those with the evidence among them, in random order."""
        arranged = arrange(row, num_passages, seed, keep_gold=True)
        return self._tokenise(arranged, answer_of(row))

    def make_answerless(self, row: QuestionRow, other: QuestionRow, num_passages: int, seed: int) -> TokenisedContext:
        """Return the row's question over passages of another row."""
        stranger = replace(row, passages=other.passages, gold=(), answerable=False)
        return self._tokenise(arrange(stranger, num_passages, seed), NOT_FOUND)

    def _tokenise(self, row: QuestionRow, answer: str) -> TokenisedContext:
        texts = [passage.content for passage in row.passages]
        chunks = PackedChunks.cut([self.spans.token_ids(text) for text in texts], self.chunker.config.chunk_size)
        question = TokenisedQuestion(
            task=row.task,
            text=row.question,
            answer=answer,
            prompt_ids=self.chunker.question_ids(row.question),
            answer_ids=self.chunker.answer_ids(answer),
            chunks=self.chunker.question_chunks(row.question),
            evidence_chunks=self._evidence(row, texts, chunks) if row.answerable else [],
        )
        return TokenisedContext(texts, chunks, [question])

    def _evidence(self, row: QuestionRow, texts: Sequence[str], chunks: PackedChunks) -> list[int]:
        starts = np.searchsorted(chunks.passages, np.arange(len(texts) + 1)).tolist()
        candidates = range(len(texts)) if row.gold is None else row.gold
        evidence: set[int] = set()
        for place in candidates:
            for number in self._holding(texts[place], row.answers):
                near = range(starts[place] + number - 1, starts[place] + number + 2)
                evidence.update(chunk for chunk in near if starts[place] <= chunk < starts[place + 1])
        if not evidence and row.gold:
            return [chunk for place in row.gold for chunk in range(starts[place], starts[place + 1])]
        return sorted(evidence)

    def _holding(self, text: str, answers: Sequence[str]) -> Iterator[int]:
        """Yield the numbers of the passage's chunks that hold a part of an accepted answer."""
        for answer in filter(None, answers):
            for match in re.finditer(re.escape(answer), text, re.IGNORECASE):
                yield from self.spans.covered_chunks(text, match.start(), match.end())


def answer_of(row: QuestionRow) -> str:
    """Return the preferred answer, or what says that there is none."""
    return row.answers[0] if row.answerable and row.answers else NOT_FOUND
