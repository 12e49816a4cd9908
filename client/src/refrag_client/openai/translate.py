"""Translation of a request's body into the question, the passages, the earlier turns and the options of the client."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from refrag_client.openai.bodies import ChatBody, CompletionBody, GenerationBody, Message
from refrag_client.openai.documents import Document
from refrag_client.openai.errors import bad_field
from refrag_client.request import SEARCH_OPTIONS, GenerateOptions

USER, ASSISTANT = "user", "assistant"


@dataclass(frozen=True)
class Ask:
    """One request in the client's terms.

    names: what fields of a chat are called in this body, for messages about them.
    """

    question: str
    documents: Sequence[Document]
    options: GenerateOptions
    names: Mapping[str, str]
    is_stream: bool
    wants_usage: bool
    wants_log_probs: bool
    wants_chunks: bool

    @property
    def is_search(self) -> bool:
        """Return whether the server is to find the passages, in a collection."""
        return self.options.get("collection") is not None

    @property
    def passages(self) -> list[str]:
        return [document.text for document in self.documents]


def translate_chat(body: ChatBody) -> Ask:
    """Return what the messages ask; raise ApiError where they are no conversation that ends with a question."""
    instructions = [message.content for message in body.messages if message.role not in (USER, ASSISTANT)]
    turns = _join_neighbours(_without_blank([each for each in body.messages if each.role in (USER, ASSISTANT)]))
    if not turns or turns[-1]["role"] != USER:
        raise bad_field("messages", "the last message must be the user's, with the question; add one")
    *history, last = turns
    question = "\n\n".join([*instructions, last["content"]])
    names = {} if body.max_completion_tokens is None else {"max_tokens": "max_completion_tokens"}
    return _ask(body, question, names, _max_tokens(body), bool(body.logprobs), history)


def translate_completion(body: CompletionBody) -> Ask:
    """Return what the prompt asks."""
    return _ask(body, body.prompt, {"messages": "prompt"}, body.max_tokens, body.logprobs is not None, [])


def check_deadline(ask: Ask, timeout_seconds: float | None) -> None:
    """Raise ApiError for a deadline that the endpoint, which waits for Triton so long, would not wait for."""
    deadline_ms = ask.options.get("deadline_ms")
    if deadline_ms is None or timeout_seconds is None or deadline_ms <= timeout_seconds * 1000:
        return
    name = "refrag.deadline_ms"
    raise bad_field(
        name,
        f"{name} is {deadline_ms}; this endpoint waits {timeout_seconds * 1000:.0f} ms at most (--timeout-seconds); "
        "lower it",
    )


def _ask(
    body: GenerationBody,
    question: str,
    names: Mapping[str, str],
    max_tokens: int | None,
    wants_log_probs: bool,
    history: list[dict[str, str]],
) -> Ask:
    _check_combinations(body)
    refrag, is_stream = body.refrag, bool(body.stream)
    options: GenerateOptions = {
        "max_tokens": max_tokens,
        "min_tokens": _min_tokens(body, max_tokens),
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        # Two's complement: OpenAI's seeds may be negative.
        "seed": None if body.seed is None else body.seed % 2**64,
        "stop_words": body.stop,
        "repetition_penalty": body.repetition_penalty,
        "priority": body.priority,
        "log_probs": wants_log_probs or None,
        "collection": body.collection,
        "num_passages": body.num_passages,
        "filter": body.filter,
        "search_mode": body.search_mode,
        # Each token's text comes with its own response only.
        "stream": is_stream or wants_log_probs,
    }
    if refrag is not None:
        options |= {
            "expand_fraction": refrag.expand_fraction,
            "max_prompt_slots": refrag.max_prompt_slots,
            "policy": refrag.policy,
            "sense_tokens": refrag.sense_tokens,
            "min_confidence": refrag.min_confidence,
            "deadline_ms": refrag.deadline_ms,
            "shadow_fraction": refrag.shadow_fraction,
            "whole_history": refrag.whole_history,
        }
    if history:
        options["history"] = history
    return Ask(
        question=question,
        documents=body.documents or [],
        options=options,
        names=names if body.collection is None else {**names, "documents": "num_passages"},
        is_stream=is_stream,
        wants_usage=body.stream_options is not None and bool(body.stream_options.include_usage),
        wants_log_probs=wants_log_probs,
        wants_chunks=refrag is not None and refrag.return_chunks,
    )


def _check_combinations(body: GenerationBody) -> None:
    """Raise ApiError for fields that make no sense together."""
    if body.stream_options is not None and not body.stream:
        raise bad_field("stream_options", "stream_options is for streams; leave it out, or send stream = true")
    if body.collection is not None and body.documents:
        raise bad_field("documents", "documents and a collection are both there; send one of them")
    for name in SEARCH_OPTIONS:
        if body.collection is None and getattr(body, name) is not None:
            raise bad_field(name, f"{name} is for the search in a collection; name one, or leave it out")


def _max_tokens(body: ChatBody) -> int | None:
    """Return the limit under its new name or its old one."""
    new, old = body.max_completion_tokens, body.max_tokens
    if new is not None and old is not None and new != old:
        raise bad_field("max_completion_tokens", f"max_completion_tokens is {new} and max_tokens {old}; send one")
    return old if new is None else new


def _min_tokens(body: GenerationBody, max_tokens: int | None) -> int | None:
    if not body.ignore_eos:
        return body.min_tokens
    if max_tokens is None:
        raise bad_field("ignore_eos", "ignore_eos makes the answer as long as max_tokens, which is not given; add it")
    return max_tokens


def _without_blank(messages: Sequence[Message]) -> list[Message]:
    """Return the messages that say something, and the last; clients send an empty answer back as they got it."""
    return [each for each in messages if each.content.strip() or each is messages[-1]]


def _join_neighbours(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Return the turns; messages of one role in a row are one."""
    turns: list[dict[str, str]] = []
    for message in messages:
        if turns and turns[-1]["role"] == message.role:
            turns[-1]["content"] += f"\n\n{message.content}"
        else:
            turns.append({"role": message.role, "content": message.content})
    return turns
