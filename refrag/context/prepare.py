"""Turns a request into tokens: its passages' chunks, and its question for the prompt and for the policy."""

from dataclasses import dataclass

from refrag.context.chunking import Chunker, PackedChunks
from refrag.request import Request


@dataclass(frozen=True)
class PreparedContext:
    """A request as tokens.

    question_ids: the question as the prompt has it. question_chunks: the question for the encoder, for policies that
    read it. new_tokens: tokens of the passages that the chunker's cache did not know.
    """

    chunks: PackedChunks
    question_ids: list[int]
    question_chunks: PackedChunks
    new_tokens: dict[str, list[int]]


def prepare_context(request: Request, chunker: Chunker) -> PreparedContext:
    chunks, new_tokens = chunker.read_passages(request.passages)
    return PreparedContext(
        chunks=chunks,
        question_ids=chunker.question_ids(request.question),
        question_chunks=chunker.question_chunks(request.question),
        new_tokens=new_tokens,
    )
