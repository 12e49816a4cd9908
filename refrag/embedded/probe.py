"""A tiny question through the whole request graph: does this server answer?

Readiness of Triton says that models were loaded once, not that they still answer.
"""

import http.client
import json
import time
from typing import Literal

from refrag.errors import RefragError

# The ensemble that is asked.
GRAPH = "refrag"
# Those that answer questions. Each lists its steps itself: what one answers, the other does not count.
_ENSEMBLES = (GRAPH, "refrag_rag")
TIMEOUT_SECONDS = 30.0
# Share of the time after which the decoder ends the question, which is soon enough to be told of it.
_DEADLINE_SHARE = 0.5
# Share of the time that the server's statistics may take, before the question and after it.
_STATISTICS_SHARE = 1 / 6
# A server that is only busy refuses a question or ends it late, and is well.
_BUSY = ("Overloaded", "DeadlineExceeded")
# Before all others: a probe that waits behind long prompts would tell nothing.
_PRIORITY = -(2**31)

Finding = Literal["answered", "busy"]


class ProbeFailed(RefragError):
    """The server did not answer the probe."""


def ask_server(http_address: str, timeout_seconds: float = TIMEOUT_SECONDS) -> Finding:
    """Return whether the server answers a question or is busy with others'; raise ProbeFailed with the reason if not.

    It is busy if it says so, or if it answered other questions while this one waited for the encoder, where all wait in
    turn. All of it takes `timeout_seconds` at most.
    """
    began = time.monotonic()
    question = {
        "text_input": "Are you there?",
        "passages": ["Here."],
        "max_tokens": 1,
        "stream": False,
        "priority": _PRIORITY,
        "deadline_ms": int(1000 * timeout_seconds * _DEADLINE_SHARE),
    }
    statistics_seconds = timeout_seconds * _STATISTICS_SHARE
    num_answered = _count_answered(http_address, statistics_seconds)
    kept_seconds = 0.0 if num_answered is None else statistics_seconds
    left_seconds = began + timeout_seconds - kept_seconds - time.monotonic()
    try:
        status, body = _request(
            http_address, "POST", f"/v2/models/{GRAPH}/generate", json.dumps(question), left_seconds
        )
    except TimeoutError:
        if num_answered is not None and (_count_answered(http_address, statistics_seconds) or 0) > num_answered:
            return "busy"
        waited_seconds = time.monotonic() - began
        raise ProbeFailed(f"no answer from {http_address} within {waited_seconds:.1f} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise ProbeFailed(f"{http_address} cannot be asked: {error or type(error).__name__}") from None
    if status == 200:
        return "answered"
    if not _is_busy(message := _error_in(body)):
        raise ProbeFailed(f"{http_address} answered with HTTP status {status}: {message}")
    return "busy"


def _count_answered(http_address: str, timeout_seconds: float) -> int | None:
    """Return how many questions all ensembles have answered; None where that cannot be told."""
    try:
        _, body = _request(http_address, "GET", "/v2/models/stats", None, timeout_seconds)
        answering = [each for each in json.loads(body)["model_stats"] if each["name"] in _ENSEMBLES]
        return sum(int(each["inference_stats"]["success"]["count"]) for each in answering)
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None


def _is_busy(message: str) -> bool:
    # The server's own errors are JSON objects, behind what Triton puts before them.
    return any(f'"type": "{kind}"' in message for kind in _BUSY)


def _error_in(body: str) -> str:
    """Return Triton's error message in a response, or all of it where there is none, as from a proxy."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.strip()


def _request(address: str, method: str, path: str, body: str | None, timeout_seconds: float) -> tuple[int, str]:
    # http.client and not urllib, which would send the question through a configured proxy.
    ends = time.monotonic() + timeout_seconds
    connection = http.client.HTTPConnection(address, timeout=timeout_seconds)
    try:
        connection.connect()
        # The time is that of each wait; connecting may have used some of it.
        connection.sock.settimeout(max(ends - time.monotonic(), 0.001))
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    finally:
        connection.close()
