"""World contexts as tokens: chunks, questions, answers, and which chunks hold each answer."""

import random
from dataclasses import dataclass

from refrag.chunking import Chunk, Chunker, cut_into_chunks
from refrag.training.world import Context, Question, Split, make_context


@dataclass(frozen=True)
class TokenisedQuestion:
    """prompt_ids: the templated question. answer_ids: with EOS. answer_chunks: numbers of the chunks that hold it."""

    text: str
    answer: str
    prompt_ids: list[int]
    answer_ids: list[int]
    chunks: list[Chunk]
    answer_chunks: list[int]


@dataclass(frozen=True)
class TokenisedContext:
    passages: list[str]
    chunks: list[Chunk]
    questions: list[TokenisedQuestion]

    @property
    def num_tokens(self) -> int:
        return sum(len(chunk) for chunk in self.chunks)


def draw_context(
    rng: random.Random, chunker: Chunker, num_passages: int, num_questions: int, split: Split
) -> TokenisedContext:
    return tokenise_context(make_context(rng, num_passages, num_questions, split), chunker)


def tokenise_context(context: Context, chunker: Chunker) -> TokenisedContext:
    chunks: list[Chunk] = []
    first_chunk: list[int] = []
    for number, passage in enumerate(context.passages):
        first_chunk.append(len(chunks))
        chunks += cut_into_chunks(chunker.passage_ids(passage), chunker.config.chunk_size, number)
    questions = [_tokenise_question(question, context, chunker, first_chunk) for question in context.questions]
    return TokenisedContext(context.passages, chunks, questions)


def _tokenise_question(
    question: Question, context: Context, chunker: Chunker, first_chunk: list[int]
) -> TokenisedQuestion:
    tokenizer = chunker.decoder_tokenizer
    answer_ids = tokenizer(f" {question.answer}", add_special_tokens=False).input_ids
    positions = _token_positions(question, context.passages[question.passage], chunker)
    first = first_chunk[question.passage]
    return TokenisedQuestion(
        text=question.text,
        answer=question.answer,
        prompt_ids=chunker.question_ids(question.text),
        answer_ids=[*answer_ids, tokenizer.eos_token_id],
        chunks=chunker.question_chunks(question.text),
        answer_chunks=sorted({first + position // chunker.config.chunk_size for position in positions}),
    )


def _token_positions(question: Question, passage: str, chunker: Chunker) -> list[int]:
    """The passage's tokens that share a character with the answer."""
    template = chunker.config.template
    shift = len(template.passage_prefix)
    text = template.passage_prefix + passage + template.passage_suffix
    encoded = chunker.decoder_tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
    start, stop = question.start + shift, question.stop + shift
    return [position for position, (left, right) in enumerate(encoded.offset_mapping) if left < stop and right > start]
