"""Errors as OpenAI has them: a status, and {"error": {message, type, param, code}}; param is the field at fault."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel
from starlette.responses import JSONResponse

from refrag_client.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RefragError,
    ServerUnavailable,
)
from refrag_client.openai.bodies import (
    ChatBody,
    ChunksBody,
    CompletionBody,
    EmbeddingBody,
    Message,
    RefragOptions,
    StreamOptions,
)

BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/v1/embeddings": EmbeddingBody,
    "/v1/chunks": ChunksBody,
}
# Fields of a body that hold objects with fields of their own.
INSIDE: dict[str, type[BaseModel]] = {"messages": Message, "refrag": RefragOptions, "stream_options": StreamOptions}
# Names of other servers, where the spelling does not lead to ours.
OTHER_NAMES = {
    "context": "documents",
    "contexts": "documents",
    "data_sources": "documents",
    "history": "messages",
    "length_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
    "passages": "documents",
    "query": "messages",
    "stop_sequences": "stop",
    **{name: f"refrag.{name}" for name in RefragOptions.model_fields},
}
# What the server calls the fields of a body, for its complaints.
FIELDS = {
    "expand_fraction": "refrag.expand_fraction",
    "max_prompt_slots": "refrag.max_prompt_slots",
    "policy": "refrag.policy",
    "sense_tokens": "refrag.sense_tokens",
    "min_confidence": "refrag.min_confidence",
    "deadline_ms": "refrag.deadline_ms",
    "shadow_fraction": "refrag.shadow_fraction",
    "whole_history": "refrag.whole_history",
    "stop_words": "stop",
    "log_probs": "logprobs",
    "text_input": "messages",
    "history": "messages",
    "passages": "documents",
    **{name: name for name in ("max_tokens", "min_tokens", "temperature", "top_k", "top_p", "seed", "priority")},
    **{name: name for name in ("repetition_penalty", "collection", "num_passages", "filter", "search_mode")},
}
NAME = re.compile(r"\b(?:" + "|".join(FIELDS) + r")\b")
# Of what a caller sent, an error repeats no more.
LONGEST_MESSAGE, LONGEST_NAME = 2000, 200
# A caller that was turned away may ask again after this time.
RETRY_AFTER = {"Retry-After": "1"}


@dataclass
class ApiError(Exception):
    """An error with its HTTP status; `param` is the field at fault."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        param = None if self.param is None else _shorten(_as_unicode(self.param), LONGEST_NAME)
        message = _shorten(_as_unicode(self.message), LONGEST_MESSAGE)
        return {"error": {"message": message, "type": self.type, "param": param, "code": self.code}}


def error_response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers)


def bad_field(param: str, message: str, status: int = 400, code: str | None = None) -> ApiError:
    return ApiError(status, message, param=param, code=code)


def from_refrag(error: RefragError, names: Mapping[str, str]) -> ApiError:
    """Return the error for what the server or the client told.

    names: what fields of a chat are called in this body, where that is something else.
    """
    message = str(error)
    if isinstance(error, InvalidRequest):
        param = _field_in(message)
        return ApiError(400, message, param=names.get(param, param))
    if isinstance(error, Overloaded):
        return ApiError(429, message, "rate_limit_error", code="overloaded", headers=RETRY_AFTER)
    if isinstance(error, DeadlineExceeded):
        # The client's own word for what is an option of the endpoint's.
        told = message.replace("timeout_seconds", "the endpoint's --timeout-seconds")
        return ApiError(504, told, "timeout_error", param="refrag.deadline_ms", code="deadline_exceeded")
    if isinstance(error, ServerUnavailable):
        return ApiError(503, message, "server_error", code="unavailable", headers=RETRY_AFTER)
    if isinstance(error, Cancelled):
        return ApiError(503, message, "server_error", code="cancelled")
    return ApiError(502, message, "server_error", code="server_failed")


def from_validation(path: str, errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Return the error for the first of pydantic's complaints about the body of a request to `path`."""
    error = errors[0]
    place = tuple(error["loc"])[1:]
    if error["type"] == "json_invalid" or not place:
        return bad_field("body", _explain_body(error))
    name = _dotted(place)
    if error["type"] == "extra_forbidden":
        return bad_field(name, _explain_unknown(path, place), code="unknown_field")
    if error["type"] == "missing":
        return bad_field(name, f"{name} is missing; it must be given")
    return bad_field(name, f"{name} is {_shorten(repr(error['input']), 60)}: {_complaint(error)}")


def _field_in(message: str) -> str:
    """Return the field of a chat that the server's complaint is about: the first input that it names."""
    found = NAME.search(message)
    return FIELDS[found.group()] if found else "messages"


def _explain_body(error: Mapping[str, Any]) -> str:
    if error["type"] == "json_invalid":
        return f"the body is not JSON: {error.get('ctx', {}).get('error', error['msg'])}"
    if error["type"] == "value_error":
        return _complaint(error)
    return "the body is no JSON object; send one, with the header Content-Type: application/json"


def _explain_unknown(path: str, place: Sequence[str | int]) -> str:
    model = INSIDE[str(place[0])] if len(place) > 1 else BODIES[path]
    name, known = str(place[-1])[:LONGEST_NAME], list(model.model_fields)
    meant = OTHER_NAMES.get(name) if len(place) == 1 else None
    if meant is None or meant.split(".")[0] not in known:
        meant = next(iter(get_close_matches(name.lower().replace("-", "_"), known, n=1)), None)
    advice = f"is {meant} meant?" if meant else "leave it out"
    return f"{_dotted(place)} is no field of this request; {advice} (the fields are {', '.join(known)})"


def _complaint(error: Mapping[str, Any]) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    message = str(error["msg"])
    return message[:1].lower() + message[1:]


def _dotted(place: Sequence[str | int]) -> str:
    """Return the path to a field, such as messages[0].content."""
    return "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in place).removeprefix(".")


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def _as_unicode(text: str) -> str:
    """Return the text with what UTF-8 cannot hold, which JSON can, written out."""
    return text.encode(errors="backslashreplace").decode()
