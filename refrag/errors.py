"""The exceptions of this project, and their form on the wire.

    RefragError
    ├── InvalidRequest     the caller must change the request        INVALID_ARG
    ├── Overloaded         the same request may succeed later        UNAVAILABLE
    ├── ServerUnavailable  the server is stopping                    UNAVAILABLE
    ├── Cancelled          the caller stopped the request            CANCELLED
    ├── DeadlineExceeded   the request's own deadline passed         CANCELLED
    ├── CheckpointError    a checkpoint is missing or does not fit   INTERNAL
    ├── SetupError         this machine lacks something we need      INTERNAL
    └── TrainingError      settings or data that cannot be trained   INTERNAL

A gRPC stream error carries neither a status code nor a request id. So the type travels in the message itself, as one
JSON object, which a client finds whatever prefix an ensemble puts before it.
"""

import json
import re


class RefragError(Exception):
    """Base of every error that this project raises on purpose."""

    triton_code = "INTERNAL"
    # Of the command `refrag`, which knows errors of all packages by it.
    exit_code = 1

    def to_wire(self) -> str:
        """Return the error as the JSON object that clients parse: `{"type": …, "message": …}`."""
        return json.dumps({"type": type(self).__name__, "message": str(self)})


class InvalidRequest(RefragError):
    triton_code = "INVALID_ARG"
    exit_code = 2


class Overloaded(RefragError):
    triton_code = "UNAVAILABLE"


class ServerUnavailable(RefragError):
    triton_code = "UNAVAILABLE"


class Cancelled(RefragError):
    triton_code = "CANCELLED"


class DeadlineExceeded(RefragError):
    # Triton has no code for a deadline; the type in the message tells it from Cancelled.
    triton_code = "CANCELLED"


class CheckpointError(RefragError):
    pass


class SetupError(RefragError):
    pass


class TrainingError(RefragError):
    pass


def error_from_model(model: str, message: str) -> RefragError:
    """Return the error whose JSON form stands in another model's message, or one that says which model failed."""
    found = re.search(r"\{.*\}", message, re.DOTALL)
    try:
        wire = json.loads(found[0]) if found else {}
        kinds = {kind.__name__: kind for kind in RefragError.__subclasses__()}
        return kinds[wire["type"]](wire["message"])
    except (ValueError, KeyError, TypeError):
        return RefragError(f"model {model!r} failed: {message}")
