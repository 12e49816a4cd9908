"""A request with all its options: each option is written once, here, with its tensor and its help."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypedDict
from uuid import uuid4

from refrag_client.errors import InvalidRequest

Datatype = Literal["BYTES", "INT64", "UINT64", "FP32", "BOOL"]


@dataclass(frozen=True)
class Tensor:
    """The tensor that carries an option, and its help; `name` is None where the server's name is the option's own.

    is_json: whether its elements are JSON in a BYTES tensor.
    """

    datatype: Datatype
    help: str
    name: str | None = None
    is_json: bool = False


def _sent_as(datatype: Datatype, help: str, name: str | None = None, is_json: bool = False) -> dict[str, Tensor]:
    return {"tensor": Tensor(datatype, help, name, is_json)}


# For the help only: a server may have further policies. It refuses an unknown name and lists those that it has.
POLICIES = ("learned", "similarity", "neighbourhood", "attention", "random", "none", "all")
# Of texts in `history`, in turn.
ROLES = ("user", "assistant")
SEARCH_MODES = ("hybrid", "text", "dense")
# Options of a collection's search, which make no sense without one.
SEARCH_OPTIONS = ("num_passages", "filter", "search_mode")

# A turn of a conversation: {"role": …, "content": …}, or its text alone.
Turn = Mapping[str, str] | str


@dataclass(frozen=True)
class GenerateRequest:
    """One request. An option that is None or empty is not sent, so the server's default holds.

    Raises InvalidRequest only for what no tensor can hold; the server checks all limits.
    """

    question: str = field(metadata=_sent_as("BYTES", "what to ask", name="text_input"))
    passages: Iterable[str] = field(default=(), metadata=_sent_as("BYTES", "the retrieved passages, best first"))
    history: Iterable[Turn] = field(
        default=(), metadata=_sent_as("BYTES", "the turns before the question, oldest first", is_json=True)
    )
    whole_history: bool | None = field(
        default=None, metadata=_sent_as("BOOL", "refuse what does not fit the window, instead of leaving out old turns")
    )
    collection: str | None = field(
        default=None, metadata=_sent_as("BYTES", "the server's collection to retrieve passages from, instead")
    )
    num_passages: int | None = field(default=None, metadata=_sent_as("INT64", "passages to retrieve"))
    filter: Mapping[str, Any] | str | None = field(
        default=None, metadata=_sent_as("BYTES", "conditions on their metadata, a JSON object")
    )
    search_mode: str | None = field(
        default=None, metadata=_sent_as("BYTES", f"how to find them: {', '.join(SEARCH_MODES)}")
    )
    max_tokens: int | None = field(default=None, metadata=_sent_as("INT64", "tokens to generate at most"))
    expand_fraction: float | None = field(
        default=None, metadata=_sent_as("FP32", "share of chunks to expand: 0 compresses all, 1 is the plain decoder")
    )
    max_prompt_slots: int | None = field(
        default=None, metadata=_sent_as("INT64", "slots of the prompt at most: expands as many chunks as fit")
    )
    policy: str | None = field(
        default=None, metadata=_sent_as("BYTES", f"what picks them: {', '.join(POLICIES)}, or another of the server's")
    )
    sense_tokens: int | None = field(
        default=None,
        metadata=_sent_as("INT64", "tokens that policy attention generates unseen, to see where they look"),
    )
    min_confidence: float | None = field(
        default=None,
        metadata=_sent_as("FP32", "share of the policy's weight to expand at least: where the budget holds less, more"),
    )
    temperature: float | None = field(default=None, metadata=_sent_as("FP32", "0 is greedy, more is more random"))
    top_k: int | None = field(default=None, metadata=_sent_as("INT64", "sample from this many likeliest tokens"))
    top_p: float | None = field(default=None, metadata=_sent_as("FP32", "sample from this much probability mass"))
    seed: int | None = field(default=None, metadata=_sent_as("UINT64", "makes sampling repeatable"))
    repetition_penalty: float | None = field(
        default=None, metadata=_sent_as("FP32", "more than 1 makes tokens of the answer less likely to come again")
    )
    min_tokens: int | None = field(default=None, metadata=_sent_as("INT64", "tokens to generate at least"))
    stop_words: Iterable[str] = field(default=(), metadata=_sent_as("BYTES", "texts that end the answer"))
    log_probs: bool | None = field(default=None, metadata=_sent_as("BOOL", "tell each token's log-probability"))
    priority: int | None = field(default=None, metadata=_sent_as("INT64", "lower goes first, 0 unless given"))
    deadline_ms: int | None = field(default=None, metadata=_sent_as("INT64", "the server gives up after this time"))
    shadow_fraction: float | None = field(
        default=None,
        metadata=_sent_as("FP32", "chance of a second answer from the plain prompt, for the metrics alone"),
    )
    stream: bool = field(default=True, metadata=_sent_as("BOOL", "answer token by token, not all at once"))
    exclude_input_in_output: bool | None = field(
        default=None, metadata=_sent_as("BOOL", "leave the question out of the answer")
    )
    request_id: str = field(default_factory=lambda: str(uuid4()))

    def __post_init__(self) -> None:
        for name in ("passages", "stop_words"):
            object.__setattr__(self, name, _to_texts(name, getattr(self, name)))
        object.__setattr__(self, "history", _to_turns(self.history))
        if not isinstance(self.request_id, str) or not self.request_id:
            raise InvalidRequest(f"request_id is {self.request_id!r}; give a unique, non-empty str or leave it out")
        object.__setattr__(self, "filter", to_filter(self.filter))
        self._check_collection()

    def _check_collection(self) -> None:
        if self.collection is not None and self.passages:
            raise InvalidRequest("both passages and a collection are given; give one of them")
        for name in SEARCH_OPTIONS:
            if self.collection is None and getattr(self, name) is not None:
                raise InvalidRequest(f"{name} is given without a collection to search; name one, or leave it out")


class GenerateOptions(TypedDict, total=False):
    """The keyword arguments of `generate` and `stream`: the fields of GenerateRequest but question and passages."""

    history: Iterable[Turn]
    whole_history: bool | None
    collection: str | None
    num_passages: int | None
    filter: Mapping[str, Any] | str | None
    search_mode: str | None
    max_tokens: int | None
    expand_fraction: float | None
    max_prompt_slots: int | None
    policy: str | None
    sense_tokens: int | None
    min_confidence: float | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    repetition_penalty: float | None
    min_tokens: int | None
    stop_words: Iterable[str]
    log_probs: bool | None
    priority: int | None
    deadline_ms: int | None
    shadow_fraction: float | None
    stream: bool
    exclude_input_in_output: bool | None
    request_id: str


def tensors_by_option() -> dict[str, Tensor]:
    """Return the tensor of every option that can be sent, by the option's name."""
    return {option.name: option.metadata["tensor"] for option in fields(GenerateRequest) if option.metadata}


def to_filter(conditions: Mapping[str, Any] | str | None) -> str | None:
    """Return the conditions as JSON; raise InvalidRequest for what JSON cannot hold."""
    if conditions is None or isinstance(conditions, str):
        return conditions
    try:
        return json.dumps(dict(conditions))
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f'filter is {conditions!r} ({error}); give a mapping such as {{"lang": "en"}}') from None


def _to_texts(name: str, texts: Iterable[str] | None) -> tuple[str, ...]:
    if isinstance(texts, (str, bytes)):
        raise InvalidRequest(f"{name} is a single {type(texts).__name__}; give a list of str")
    return () if texts is None else tuple(texts)


def _to_turns(turns: Iterable[Turn] | None) -> tuple[Turn, ...]:
    """Return the turns as the server takes them: with their roles, which texts have in turn."""
    if isinstance(turns, (str, bytes, Mapping)):
        raise InvalidRequest(f"history is a single {type(turns).__name__}; give a list of turns")
    given = () if turns is None else tuple(turns)
    if not all(isinstance(turn, str) for turn in given):
        return given
    return tuple({"role": ROLES[number % 2], "content": str(turn)} for number, turn in enumerate(given))
