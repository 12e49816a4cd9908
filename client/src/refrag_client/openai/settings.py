"""The endpoint's options: name, default and help are written once, and the command line is derived from them."""

import argparse
import math
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from refrag_client.errors import InvalidRequest


def option(default: Any, help: str, parse: Callable[[str], Any] = str) -> Any:
    """Return a field; one whose default is a tuple may be given several times."""
    return field(default=default, metadata={"help": help, "parse": parse})


@dataclass(frozen=True)
class EndpointSettings:
    """Options of the endpoint. Raises InvalidRequest for a value that is not allowed, with its name."""

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 serves other machines")
    port: int = option(9000, "port to listen on; 0 picks a free one", int)
    model: tuple[str, ...] = option(("refrag",), "model of Triton to serve; the first answers where none is named")
    decoder_model: str = option("decoder", "model of Triton to stop when a caller leaves")
    store_model: str = option("chunk_store", "model of Triton that encodes for /v1/embeddings")
    api_keys: Path | None = option(None, "file with one API key a line; REFRAG_API_KEYS holds some, too", Path)
    tls_certificate: Path | None = option(None, "PEM file of the endpoint's certificate chain; encrypts", Path)
    tls_key: Path | None = option(None, "PEM file of its key", Path)
    cors_origin: tuple[str, ...] = option((), "web origin whose pages may call the endpoint")
    max_body_bytes: int = option(8 * 1024 * 1024, "largest body of a request", int)
    max_requests: int = option(256, "requests at a time; more get status 429", int)
    drain_seconds: float = option(60.0, "time that answers on their way have to end when the endpoint stops", float)
    stall_seconds: float = option(60.0, "time that a caller may leave what was sent to it unread", float)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InvalidRequest(f"port is {self.port}; a port lies between 0 (pick a free one) and 65535")
        if not self.model:
            raise InvalidRequest("model is empty; name at least one model of Triton")
        for name in ("max_body_bytes", "max_requests"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("drain_seconds", "stall_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidRequest(f"{name} is {getattr(self, name)}; it must be more than 0")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise InvalidRequest("tls_certificate and tls_key belong together; give both, or neither")

    @property
    def scheme(self) -> str:
        return "http" if self.tls_certificate is None else "https"

    @property
    def is_reachable_from_outside(self) -> bool:
        return not (self.host in ("localhost", "::1") or self.host.startswith("127."))


def add_options(parser: argparse.ArgumentParser) -> None:
    for each in fields(EndpointSettings):
        flag, parse = "--" + each.name.replace("_", "-"), each.metadata["parse"]
        help_text = f"{each.metadata['help']} (default: {show_default(each)})"
        if isinstance(each.default, tuple):
            parser.add_argument(flag, action="append", type=parse, help=f"{help_text}; may be repeated")
        else:
            parser.add_argument(flag, default=each.default, type=parse, help=help_text)


def show_default(option: Field[Any]) -> str:
    """Return an option's default as people read it."""
    default = " ".join(option.default) if isinstance(option.default, tuple) else option.default
    return "none" if default in ("", None) else str(default)


def settings_from_arguments(arguments: argparse.Namespace) -> EndpointSettings:
    """Return the options as settings; raise InvalidRequest for one that is not allowed."""
    options = {each.name: getattr(arguments, each.name) for each in fields(EndpointSettings)}
    for each in fields(EndpointSettings):
        if isinstance(each.default, tuple):
            options[each.name] = tuple(options[each.name] or each.default)
    return EndpointSettings(**options)
