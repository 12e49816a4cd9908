"""A teacher's answers to questions, with its distribution before each token: written once, learned from many times.

FOLDER/questions.jsonl       the questions with the teacher's answers, a question set of the form `rows`
FOLDER/passages.jsonl        the passages of all of them
FOLDER/targets.safetensors   for the answers in the order of the questions, T tokens together:
    lengths             INT32 (R,)            tokens of each answer
    token_ids           INT32 (T,)            the answers, each with the token that ended it
    likeliest_ids       INT32 (T, N)          the N likeliest tokens before each of them
    log_probabilities   FP16 (T, N + 1)       their log-probabilities, the last of all other tokens together
FOLDER/parts/                the answers of a call that was cut off, until another one has them all

No label is needed: the teacher is the decoder that reads the passages in full (top-k distillation; the rest keeps its
mass, where xRAG's released code drops it).
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from refrag.context.chunking import Chunker
from refrag.context.tokenizer import TextTokenizer
from refrag.data.questions.contexts import RowContexts
from refrag.data.questions.row import QuestionRow
from refrag.decoders.base import MixedPrompt
from refrag.errors import TrainingError
from refrag.model.decoder import Decoder
from refrag.prompt import lay_out_prompt
from refrag.teacher_forcing.distribution import TopDistribution
from refrag.teacher_forcing.prompt_reader import PromptReader
from refrag.training.target_tensors import (
    ANSWERS_PER_PART,
    LENGTHS,
    TENSORS,
    Target,
    TargetParts,
    join_targets,
    read_tensors,
    split_targets,
)

# R rows, T tokens of all answers, N likeliest tokens

QUESTIONS, PASSAGES, TARGETS, PARTS = "questions.jsonl", "passages.jsonl", "targets.safetensors", "parts"
# Of the earlier turns in a teacher's prompt; another one makes other answers.
LAYOUT = "turns of the chat, older ones behind the passages"
# Of the metadata: what the answers were given to, how many passages of each row the teacher read at most, and the
# vocabulary that gives the ids their meaning.
ROWS, NUM_PASSAGES, VOCABULARY = "rows", "num_passages", "vocabulary"


def write_targets(
    decoder: Decoder,
    chunker: Chunker,
    rows: Sequence[QuestionRow],
    num_passages: int,
    max_tokens: int,
    folder: Path,
    teacher: str,
) -> None:
    """Let the decoder answer each row over `num_passages` plain passages, and write questions and targets.

    Goes on after the answers that a call before this one, which was cut off, has left.

    teacher: a hash of the decoder's checkpoint.

    Raises TrainingError, before anything is answered, for a row whose prompt leaves no room for an answer, and if the
    call that was cut off had other rows, options or another teacher.
    """
    if max_tokens < 1:
        raise TrainingError(f"max_tokens is {max_tokens}; it must be at least 1")
    contexts = RowContexts(chunker)
    prompts = [plain_prompt(decoder, chunker, contexts, row, num_passages) for row in rows]
    _refuse_long(rows, prompts, chunker.config.max_prompt_slots - max_tokens)
    metadata = {
        ROWS: digest_rows(rows),
        NUM_PASSAGES: str(num_passages),
        VOCABULARY: digest_vocabulary(chunker.decoder_tokenizer),
    }
    parts = TargetParts(folder / PARTS, {**metadata, "teacher": teacher, "max_tokens": str(max_tokens)})
    targets = parts.read(num_passages)
    with tqdm(desc="targets", unit="row", total=len(rows), initial=len(targets), disable=None) as progress:
        while rest := prompts[len(targets) : len(targets) + ANSWERS_PER_PART]:
            answers = []
            for prompt in rest:
                answers.append(answer(decoder, prompt, max_tokens, num_passages))
                progress.update()
            parts.add(len(targets), answers)
            targets += answers
    _write_lines(folder / PASSAGES, {each.id: vars(each) for row in rows for each in row.passages}.values())
    texts = chunker.decoder_tokenizer.decode([each.token_ids for each in targets], skip_special_tokens=True)
    _write_lines(folder / QUESTIONS, map(_as_record, rows, texts))
    # Last: a folder without it was not finished.
    save_file(join_targets(targets), folder / TARGETS, metadata)
    parts.remove()


def read_targets(file: Path, rows: Sequence[QuestionRow], tokenizer: TextTokenizer) -> dict[str, Target]:
    """Return the target of each row by its id.

    Raise TrainingError if the file is none, or is of other rows or of a teacher with other tokens than `tokenizer` has.
    """
    tensors, metadata = read_tensors(file, "write the targets again")
    if tensors.keys() != TENSORS or len(tensors[LENGTHS]) != len(rows):
        held = f"{len(tensors[LENGTHS])} answers" if LENGTHS in tensors else sorted(tensors)
        raise TrainingError(f"{file} holds {held}, but there are {len(rows)} questions; name the targets of these rows")
    _refuse_others(file, metadata, rows, tokenizer)
    targets = split_targets(tensors, int(metadata[NUM_PASSAGES]))
    return {row.id: target for row, target in zip(rows, targets, strict=True)}


def _refuse_others(file: Path, metadata: dict[str, str], rows: Sequence[QuestionRow], tokenizer: TextTokenizer) -> None:
    if metadata.get(ROWS) != digest_rows(rows):
        raise TrainingError(
            f"{file} holds answers to other questions, to these in another order, or over other passages; name the "
            "questions and the targets that one call wrote, or write the targets again"
        )
    if NUM_PASSAGES not in metadata or VOCABULARY not in metadata:
        raise TrainingError(
            f"{file} does not tell how many passages the teacher read and what its tokens are, which students must "
            "share; write the targets again"
        )
    if metadata[VOCABULARY] != digest_vocabulary(tokenizer):
        raise TrainingError(
            f"{file} holds the tokens of another decoder than this one; write the targets again with a teacher that "
            "has the same tokenizer"
        )


def digest_rows(rows: Sequence[QuestionRow]) -> str:
    """Return a hash of the rows' order, questions, passages and turns with their layout, as targets depend on them."""
    asked: list[object] = [
        (row.id, row.history, row.question, [passage.content for passage in row.passages]) for row in rows
    ]
    if any(row.history for row in rows):
        asked.append(LAYOUT)
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def digest_vocabulary(tokenizer: TextTokenizer) -> str:
    """Return a hash of the tokens and their ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.backend.get_vocab().items())).encode()).hexdigest()


def plain_prompt(
    decoder: Decoder, chunker: Chunker, contexts: RowContexts, row: QuestionRow, num_passages: int
) -> Tensor:
    """Return the row's prompt with all passages as tokens.  -> (S,)"""
    context = contexts.make(row, num_passages, seed=0)
    question, everything = context.questions[0], range(len(context.chunks))
    prompt = lay_out_prompt(context.chunks, everything, question.prompt_ids, decoder.vocab_size, chunker.frame.head_ids)
    return torch.from_numpy(prompt.input_ids).long()


def answer(decoder: Decoder, prompt: Tensor, max_tokens: int, num_passages: int) -> Target:
    """Return the decoder's greedy answer to a plain prompt of `num_passages` passages, with the token that ended it."""
    reader = PromptReader(decoder, MixedPrompt(prompt, torch.zeros(0, decoder.width)))
    token_ids, end_id = reader.answer(max_tokens)
    whole = token_ids if end_id is None else [*token_ids, end_id]
    return Target(whole, TopDistribution.of(reader.logits(whole)), num_passages)


def _as_record(row: QuestionRow, text: str) -> dict[str, object]:
    answers = [text.strip()] if text.strip() else []
    passages = [passage.id for passage in row.passages]
    return {
        "id": row.id,
        "source": row.source,
        "task": row.task,
        "question": row.question,
        "answers": answers,
        "passages": passages,
        "gold": None if row.gold is None else list(row.gold),
        "history": [{"role": role, "text": turn} for role, turn in row.history],
        "keeps_order": row.keeps_order,
    }


def _refuse_long(rows: Sequence[QuestionRow], prompts: Sequence[Tensor], limit: int) -> None:
    for row, prompt in zip(rows, prompts, strict=True):
        if len(prompt) > limit:
            raise TrainingError(
                f"row {row.id!r} has a plain prompt of {len(prompt)} tokens, and {limit} leave room for the answer; "
                "take fewer passages, shorter answers, or fewer turns of the conversation"
            )


def _write_lines(file: Path, records: Iterable[object]) -> None:
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
