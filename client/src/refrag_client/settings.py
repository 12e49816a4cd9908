"""Settings of a connection: the server's address, timeout, certificates, headers, keepalive and message sizes."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from refrag_client.errors import InvalidRequest
from refrag_client.proxy import describe_proxy, is_loopback
from refrag_client.tls import Tls

CHANNEL_OPTIONS = (
    # The pauses between attempts to connect, which gRPC lets grow to two minutes: too long to notice that a server has
    # started. Not min_reconnect_backoff_ms, which in spite of its name ends an attempt that takes longer.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 300),
)
HEADER_NAME, HEADER_VALUE = re.compile(r"[0-9A-Za-z_.-]+"), re.compile(r"[ -~]*")
# gRPC takes a header with such a name for bytes.
BINARY_SUFFIX = "-bin"


@dataclass(frozen=True)
class ConnectionSettings:
    """The address of a server, and how to call it. Raises InvalidRequest for what cannot be a connection.

    timeout_seconds: None lets a call wait without limit.
    headers: sent with every call, as gRPC metadata.
    keepalive_seconds: how often a quiet connection is probed; None never does. A server may close a connection that is
        probed more often than it allows, which for Triton is every 300 seconds.
    max_message_bytes: of one message, either way; None for no limit, because a hundred long passages are more than the
        4 MB of gRPC's default.
    """

    url: str
    timeout_seconds: float | None
    tls: Tls | None = None
    headers: Mapping[str, str] | None = None
    keepalive_seconds: float | None = None
    max_message_bytes: int | None = None

    def __post_init__(self) -> None:
        if "://" in self.url or ":" not in self.url:
            raise InvalidRequest(f"url is {self.url!r}; give host:port of Triton's gRPC endpoint, without a scheme")
        for name in ("timeout_seconds", "keepalive_seconds", "max_message_bytes"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InvalidRequest(f"{name} is {value}; give more than 0, or None for no limit")
        for name, value in (self.headers or {}).items():
            _check_header(name, value)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        # gRPC refuses keys with capital letters, which are usual in HTTP.
        return tuple((name.lower(), value) for name, value in (self.headers or {}).items())

    @property
    def place(self) -> str:
        """Return the address for messages, with the proxy in between that the environment names, if there is one."""
        return f"{self.url}{describe_proxy(self.url)}"

    @property
    def credentials(self) -> grpc.ChannelCredentials | None:
        return None if self.tls is None else self.tls.credentials()

    @property
    def channel_options(self) -> tuple[tuple[str, Any], ...]:
        size = -1 if self.max_message_bytes is None else self.max_message_bytes
        options = [*CHANNEL_OPTIONS, ("grpc.max_send_message_length", size), ("grpc.max_receive_message_length", size)]
        if self.keepalive_seconds is not None:
            options.append(("grpc.keepalive_time_ms", max(1, int(self.keepalive_seconds * 1000))))
        if is_loopback(self.url):
            options.append(("grpc.enable_http_proxy", 0))
        return tuple(options)

    def open_channel(self) -> grpc.Channel:
        credentials = self.credentials
        if credentials is None:
            return grpc.insecure_channel(self.url, options=self.channel_options)
        return grpc.secure_channel(self.url, credentials, options=self.channel_options)


@dataclass(frozen=True, kw_only=True)
class ClientSettings(ConnectionSettings):
    """A connection, and the names of the models to ask, to ask about a collection, and to stop."""

    model: str
    decoder_model: str
    rag_model: str


def _check_header(name: str, value: str) -> None:
    if not HEADER_NAME.fullmatch(name) or name.lower().endswith(BINARY_SUFFIX):
        raise InvalidRequest(
            f"header name is {name!r}; give letters, digits, '-', '_' and '.', with another end than {BINARY_SUFFIX}"
        )
    if not isinstance(value, str) or not HEADER_VALUE.fullmatch(value):
        # Not the value itself, which is often a secret.
        raise InvalidRequest(f"the value of header {name} is not text of printable ASCII characters; encode it")
