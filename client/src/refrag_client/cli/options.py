"""Command-line options of a request, with names and help taken from GenerateRequest, and of a connection."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from refrag_client.request import GenerateOptions, tensors_by_option
from refrag_client.tls import Tls

OPTIONS = (
    "expand_fraction",
    "max_prompt_slots",
    "policy",
    "sense_tokens",
    "min_confidence",
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "seed",
    "repetition_penalty",
    "min_tokens",
    "priority",
    "deadline_ms",
    "shadow_fraction",
)

TLS_FILES = {
    "root_certificates": "certificates to trust instead of the system's",
    "private_key": "key of this client, for --certificate-chain",
    "certificate_chain": "certificate of this client, for servers that ask who calls",
}

# An operator's request may encode a whole corpus.
OPERATION_TIMEOUT_SECONDS = 600.0

SEARCH_OPTIONS = ("num_passages", "filter", "search_mode")

_TYPES = {"BYTES": str, "INT64": int, "UINT64": int, "FP32": float}


def add_request_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a request that the command line has; the server chooses those that are not given."""
    _add_options(parser, OPTIONS)
    parser.add_argument(
        "--stop-word", action="append", default=[], dest="stop_words", help="text that ends the answer; may be repeated"
    )


def add_client_options(parser: argparse.ArgumentParser) -> None:
    """Add the models and the connection of a client, which `client_options` reads."""
    parser.add_argument("--model", default="refrag", help="name of the model (default: %(default)s)")
    parser.add_argument("--decoder-model", default="decoder", help="name of the model to stop (default: %(default)s)")
    add_connection_options(parser)


def client_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the models and the connection in parsed `arguments` as keyword arguments of RefragClient."""
    models = {"model": arguments.model, "decoder_model": arguments.decoder_model}
    return {**models, **connection_options(arguments)}


def add_store_model_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="chunk_store", help="name of the store's model (default: %(default)s)")


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a search in a collection."""
    _add_options(parser, SEARCH_OPTIONS)


def search_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a search in parsed `arguments`."""
    return {name: getattr(arguments, name) for name in SEARCH_OPTIONS}


def add_actions(
    parser: argparse.ArgumentParser, actions: Mapping[str, Callable[..., Any]]
) -> dict[str, argparse.ArgumentParser]:
    """Add actions, of which one is to be named, with all options of a connection; return their parsers by name.

    The function that belongs to the named action becomes the argument `action`.
    """
    choices = parser.add_subparsers(required=True, metavar="ACTION")
    parsers = {name: choices.add_parser(name) for name in actions}
    for name, each in parsers.items():
        each.set_defaults(action=actions[name])
        add_connection_options(each, timeout_seconds=OPERATION_TIMEOUT_SECONDS)
    return parsers


def add_connection_options(parser: argparse.ArgumentParser, timeout_seconds: float = 60.0) -> None:
    """Add all options of a connection, which `connection_options` reads."""
    group = parser.add_argument_group("connection")
    group.add_argument("--url", default="127.0.0.1:8001", help="Triton's gRPC endpoint (default: %(default)s)")
    group.add_argument(
        "--timeout-seconds", type=float, default=timeout_seconds, help="give up after (default: %(default)s)"
    )
    group.add_argument("--tls", action="store_true", help="encrypt, and trust the system's certificates")
    for name, text in TLS_FILES.items():
        group.add_argument("--" + name.replace("_", "-"), metavar="FILE", help=f"{text}; encrypts (PEM)")
    group.add_argument(
        "--header",
        action="append",
        default=[],
        type=_parse_header,
        dest="headers",
        metavar="NAME=VALUE",
        help="sent with every call; may be repeated",
    )
    group.add_argument(
        "--keepalive-seconds", type=float, help="probe a quiet connection so often; Triton allows 300 or more"
    )
    group.add_argument("--max-message-bytes", type=int, help="of one message, either way (default: no limit)")


def connection_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the connection in parsed `arguments` as keyword arguments of a client."""
    files = {name: getattr(arguments, name) for name in TLS_FILES}
    is_encrypted = arguments.tls or any(file is not None for file in files.values())
    return {
        "url": arguments.url,
        "timeout_seconds": arguments.timeout_seconds,
        "tls": Tls(**files) if is_encrypted else None,
        "headers": dict(arguments.headers),
        "keepalive_seconds": arguments.keepalive_seconds,
        "max_message_bytes": arguments.max_message_bytes,
    }


def _parse_header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError("a header has the form NAME=VALUE")
    return name, value


def request_options(arguments: argparse.Namespace) -> GenerateOptions:
    """Return the request's options in parsed `arguments`."""
    return {name: getattr(arguments, name) for name in (*OPTIONS, "stop_words")}  # type: ignore[return-value]


def _add_options(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    tensors = tensors_by_option()
    for name in names:
        tensor = tensors[name]
        parser.add_argument("--" + name.replace("_", "-"), type=_TYPES[tensor.datatype], help=tensor.help)
