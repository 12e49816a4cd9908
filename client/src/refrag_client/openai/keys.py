"""API keys: read from a file and the environment, compared in constant time."""

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from refrag_client.errors import InvalidRequest

VARIABLE = "REFRAG_API_KEYS"
SCHEME = "bearer "


class ApiKeys:
    """The keys that open the endpoint; without any it is open."""

    def __init__(self, keys: Iterable[str]) -> None:
        # Digests are of one length, so that comparing them tells nothing about a key's.
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def read(cls, path: Path | None, environment: Mapping[str, str] = os.environ) -> "ApiKeys":
        """Return the keys in the file, one a line, and in the variable, separated by commas."""
        keys = [key.strip() for key in environment.get(VARIABLE, "").split(",")]
        if path is not None:
            keys += (from_file := _read_lines(path))
            if not from_file:
                raise InvalidRequest(f"api_keys names {path}, which holds no key; write one a line")
        return cls(key for key in keys if key)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def open(self, authorization: str | None) -> bool:
        """Return whether the header holds one of the keys."""
        if authorization is None or not authorization.lower().startswith(SCHEME):
            return False
        given = _digest(authorization[len(SCHEME) :].strip())
        # All are compared, so that the time does not tell which one it was.
        return sum(hmac.compare_digest(given, each) for each in self._digests) > 0


def _read_lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise InvalidRequest(f"api_keys cannot be read from {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"api_keys in {path} are not UTF-8 at byte {error.start}; write one key a line") from None
    return [line for line in lines if line and not line.startswith("#")]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
