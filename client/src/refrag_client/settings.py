"""Settings of a connection: the server's address, timeout, certificates and headers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from refrag_client.errors import InvalidRequest

CHANNEL_OPTIONS = (
    # gRPC refuses messages above 4 MB by default; a hundred long passages are more.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC's default pause between attempts grows to two minutes, too long to notice that a server has started.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


@dataclass(frozen=True)
class Tls:
    """Certificates as PEM files; without `root_certificates` the system's own are trusted."""

    root_certificates: str | Path | None = None
    private_key: str | Path | None = None
    certificate_chain: str | Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.root_certificates),
            private_key=_read(self.private_key),
            certificate_chain=_read(self.certificate_chain),
        )


@dataclass(frozen=True)
class ConnectionSettings:
    """The address of a server, and how to call it; with `timeout_seconds` None a call waits without limit."""

    url: str
    timeout_seconds: float | None
    tls: Tls | None
    headers: Mapping[str, str]

    def __post_init__(self) -> None:
        if "://" in self.url:
            raise InvalidRequest(f"url is {self.url!r}; give host:port of Triton's gRPC endpoint, without a scheme")
        if self.timeout_seconds is not None and not self.timeout_seconds > 0:
            raise InvalidRequest(f"timeout_seconds is {self.timeout_seconds}; give more than 0, or None for no limit")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        # gRPC refuses keys with capital letters, which are usual in HTTP.
        return tuple((name.lower(), value) for name, value in self.headers.items())

    def open_channel(self) -> grpc.Channel:
        if self.tls is None:
            return grpc.insecure_channel(self.url, options=CHANNEL_OPTIONS)
        return grpc.secure_channel(self.url, self.tls.credentials(), options=CHANNEL_OPTIONS)


@dataclass(frozen=True)
class ClientSettings(ConnectionSettings):
    """A connection, and the names of the models to ask and to stop."""

    model: str
    decoder_model: str


def _read(path: str | Path | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
