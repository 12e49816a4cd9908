"""A request as tokens: the chunks of its passages, and its question twice, for the prompt and for the policy."""

from dataclasses import dataclass

from refrag.context.chunking import Chunk, Chunker, PackedChunks
from refrag.request import Request


@dataclass(frozen=True)
class PreparedContext:
    """question_ids go into the prompt; question_chunks to the encoder, for a policy that reads the question.

    new_tokens: of the passages that the chunker's cache did not know.
    """

    chunks: PackedChunks
    question_ids: list[int]
    question_chunks: list[Chunk]
    new_tokens: dict[str, list[int]]


def prepare_context(request: Request, chunker: Chunker) -> PreparedContext:
    chunks, new_tokens = chunker.read_passages(request.passages)
    return PreparedContext(
        chunks=chunks,
        question_ids=chunker.question_ids(request.question),
        question_chunks=chunker.question_chunks(request.question),
        new_tokens=new_tokens,
    )
