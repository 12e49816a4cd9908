"""Parses JSON that callers send, and refuses what JSON can spell and no text can hold."""

import json
from typing import Any

from refrag.errors import InvalidRequest


def parse_json(text: str, place: str) -> Any:
    """Return the value in a text; raise InvalidRequest that names the place for a lone surrogate.

    Raises ValueError or RecursionError, as json does, for what is not JSON.
    """
    parsed = json.loads(text)
    try:
        json.dumps(parsed, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        surrogate = error.object[error.start]
        raise InvalidRequest(
            f"{place} has the lone surrogate {surrogate!r}, which is no character; leave it out"
        ) from None
    return parsed
