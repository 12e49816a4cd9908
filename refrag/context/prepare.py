"""Turns a request into tokens: the chunks of its passages and earlier turns, and its question."""

from dataclasses import dataclass, field, replace

import numpy as np

from refrag.citations import NO_SOURCES, Sources, locate
from refrag.context.chunking import Chunker, PackedChunks
from refrag.context.conversation import DEFAULT_TEXT_TOKENS, Room, lay_out_history, policy_question
from refrag.context.spans import PassageTokens
from refrag.errors import InvalidRequest
from refrag.request import EXPAND_ALL, ExpansionOptions, Request


@dataclass(frozen=True)
class ContextLimits:
    """Limits of a request with earlier turns.

    answer_tokens: slots of the window that are left for the answer. num_chunks: of passages, turns and question.
    text_tokens: tokens of the newest turns that stay text at most, instead of being cut into chunks.
    """

    answer_tokens: int
    num_chunks: int = 2**31
    text_tokens: int = DEFAULT_TEXT_TOKENS


@dataclass(frozen=True)
class PreparedContext:
    """A request as tokens.

    chunks: of the passages, then of earlier turns. sources: the places that they come from.
    question_ids: all that follows the chunks in the prompt: turns that stay text, and the question.
    question_chunks: what policies read, for the encoder: the question, behind the newest of the earlier turns if short.
    new_tokens: tokens of the passages and turns that the chunker's cache did not know.
    num_cut_turns: earlier turns that are left out, since the window is full.
    max_prompt_slots: slots that the prompt may take, for one with earlier turns, with a limit, or that gives way; None
        for others.
    answer_tokens: slots of the window that the answer may take.
    """

    chunks: PackedChunks
    question_ids: list[int]
    question_chunks: PackedChunks
    new_tokens: dict[str, PassageTokens] = field(default_factory=dict)
    sources: Sources = NO_SOURCES
    num_cut_turns: int = 0
    max_prompt_slots: int | None = None
    answer_tokens: int = 0

    def limit(self, options: ExpansionOptions) -> ExpansionOptions:
        """Return the options with no more slots than the context may take."""
        limits = [limit for limit in (options.max_prompt_slots, self.max_prompt_slots) if limit is not None]
        return replace(options, max_prompt_slots=min(limits)) if limits else options


def prepare_context(request: Request, chunker: Chunker, limits: ContextLimits) -> PreparedContext:
    """Return the request as tokens; raise InvalidRequest if turns would be cut that must not be."""
    read = chunker.read_passages(request.passages)
    context = PreparedContext(
        chunks=read.chunks,
        question_ids=chunker.question_ids(request.question),
        question_chunks=chunker.question_chunks(request.question),
        new_tokens=read.new_tokens,
        sources=Sources(locate(read.chunks.passages, read.spans), len(request.passages)),
        answer_tokens=limits.answer_tokens,
    )
    if request.history:
        context = _add_history(context, request, chunker, limits)
        context = _read_newest_pair(context, request, chunker, limits)
    if _may_give_way(request.expansion) and context.max_prompt_slots is None:
        context = _give_way(context, request, chunker, limits)
    return context


def _read_newest_pair(
    context: PreparedContext, request: Request, chunker: Chunker, limits: ContextLimits
) -> PreparedContext:
    """Return the context whose policies read the newest turns too, if the encoder takes as many chunks more."""
    text = policy_question(request.question, request.earlier_pairs, chunker, limits.text_tokens)
    question_chunks = chunker.question_chunks(text)
    is_fitting = len(context.chunks) + len(question_chunks) <= limits.num_chunks
    return replace(context, question_chunks=question_chunks) if is_fitting else context


def _may_give_way(options: ExpansionOptions) -> bool:
    """Return whether fewer chunks may be expanded than asked for, so that the window holds the answer too."""
    return options.gives_way or (options.max_prompt_slots is not None and options.policy != EXPAND_ALL)


def _give_way(context: PreparedContext, request: Request, chunker: Chunker, limits: ContextLimits) -> PreparedContext:
    """Return the context with a limit of slots, unless it does not fit the window compressed either."""
    max_prompt_slots = _most_slots(request, chunker.config.max_prompt_slots, limits)
    is_fitting = len(context.chunks) + chunker.num_other_slots(context.question_ids) <= max_prompt_slots
    return replace(context, max_prompt_slots=max_prompt_slots) if is_fitting else context


def _add_history(
    context: PreparedContext, request: Request, chunker: Chunker, limits: ContextLimits
) -> PreparedContext:
    """Return the context with earlier turns behind the passages, and in front of the question."""
    max_prompt_slots = _most_slots(request, chunker.config.max_prompt_slots, limits)
    is_plain, num_chunks = request.expansion.policy == EXPAND_ALL, len(context.chunks)
    num_slots = context.chunks.num_tokens if is_plain else num_chunks
    room = Room(
        num_slots=max_prompt_slots - num_slots - chunker.num_other_slots(context.question_ids),
        num_chunks=limits.num_chunks - num_chunks - len(context.question_chunks),
        text_tokens=limits.text_tokens,
        is_plain=is_plain,
    )
    history = lay_out_history(request.earlier_pairs, chunker, room)
    if history.num_cut and request.whole_history:
        raise InvalidRequest(
            f"history has {len(request.history)} turns, and even compressed the window is full without the first "
            f"{2 * history.num_cut}; send fewer turns or passages, or set whole_history to false to have them left out"
        )
    turns, num_passages = history.read, context.sources.num_passages
    places = locate(turns.chunks.passages + num_passages, turns.spans)
    return replace(
        context,
        chunks=PackedChunks.of(context.chunks, PackedChunks(turns.chunks.token_ids, places[:, 0])),
        question_ids=history.text_ids + context.question_ids,
        new_tokens={**context.new_tokens, **turns.new_tokens},
        sources=Sources(np.concatenate([context.sources.spans, places]), num_passages),
        num_cut_turns=2 * history.num_cut,
        max_prompt_slots=max_prompt_slots if history.num_cut < len(request.earlier_pairs) else None,
    )


def _most_slots(request: Request, window: int, limits: ContextLimits) -> int:
    """Return the slots that the prompt may take, which leave room for the answer."""
    asked, left = request.expansion.max_prompt_slots, window - limits.answer_tokens
    if asked is None:
        return left
    # More than the window is refused where the budget is computed, with or without earlier turns.
    return asked if asked > window else min(left, asked)
