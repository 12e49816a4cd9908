"""The exception tree, and the translation of a server's error messages into it.

    RefragError
    ├── InvalidRequest       the caller must change the request
    ├── Overloaded           the same request may succeed later                                    is_retryable
    ├── Cancelled            somebody asked for the end
    ├── DeadlineExceeded     the request's deadline or the client's timeout passed
    ├── ServerUnavailable    no server answers at this address, or it is stopping                  is_retryable
    │   └── ConnectionLost   the connection broke while the server was answering                   is_retryable
    └── ServerError          the server failed, or the two sides do not fit

The server sends its own errors as one JSON object inside the message. A message without such an object comes from
Triton itself and is recognised by its wording.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import grpc


class RefragError(Exception):
    """Base of every error that this package raises; `request_id` is the failed request's id, or None without one."""

    request_id: str | None = None
    # Whether the very same request may succeed later.
    is_retryable = False
    # The command `refrag` exits with it, and shows an error of any package that has it in one line.
    exit_code = 1


class InvalidRequest(RefragError):
    exit_code = 2


class Overloaded(RefragError):
    is_retryable = True


class Cancelled(RefragError):
    pass


class DeadlineExceeded(RefragError):
    pass


class ServerUnavailable(RefragError):
    is_retryable = True


class ConnectionLost(ServerUnavailable):
    """The connection broke after the request was sent; `num_tokens` of its answer had come by then."""

    num_tokens = 0


class ServerError(RefragError):
    pass


def error_from_message(message: str) -> RefragError:
    """Return the typed error that a server's error message stands for."""
    return _error_in(message) or _error_from_wording(message)


def error_from_rpc(error: grpc.RpcError) -> RefragError:
    """Return the typed error that a failed gRPC call stands for."""
    details = error.details() or "no details"
    if (told := _error_in(details)) is not None:
        return told
    known = _FROM_STATUS.get(error.code())
    return known(details) if known else _error_from_wording(details)


_FROM_WIRE = {
    error.__name__: error for error in (InvalidRequest, Overloaded, Cancelled, DeadlineExceeded, ServerUnavailable)
}

_FROM_STATUS = {
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: ServerUnavailable,
}

_FROM_WORDING = (
    (re.compile(r"exceeds maximum queue size", re.IGNORECASE), Overloaded),
    (re.compile(r"server is stopping", re.IGNORECASE), ServerUnavailable),
    (re.compile(r"request timeout expired", re.IGNORECASE), DeadlineExceeded),
    # Inside the ensemble a wrong input is the deployment's fault, not the caller's.
    (
        re.compile(
            r"^(?!.*in ensemble ).*(unexpected inference input|missing required input|inference input '"
            r"|unexpected shape for input|byte size mismatch for input)",
            re.IGNORECASE | re.DOTALL,
        ),
        InvalidRequest,
    ),
)


def _error_in(message: str) -> RefragError | None:
    """Return the error that the server has put into the message as JSON, or None if there is none."""
    for wire in _json_objects(message):
        if isinstance(wire.get("type"), str) and isinstance(wire.get("message"), str):
            return _error_from_wire(wire["type"], wire["message"])
    return None


def _error_from_wire(name: str, message: str) -> RefragError:
    known = _FROM_WIRE.get(name)
    return known(message) if known else ServerError(f"{name}: {message}")


def _error_from_wording(message: str) -> RefragError:
    for wording, error in _FROM_WORDING:
        if wording.search(message):
            return error(message)
    return ServerError(message)


def _json_objects(message: str) -> Iterator[dict[str, Any]]:
    """Yield every JSON object in `message`; Triton may put any prefix before it."""
    for brace in re.finditer(r"\{", message):
        try:
            yield json.JSONDecoder().raw_decode(message, brace.start())[0]
        except json.JSONDecodeError:
            continue
