"""Command-line options of a request, with names and help taken from GenerateRequest, and of a connection."""

import argparse

from refrag_client.request import GenerateOptions, tensors_by_option

OPTIONS = (
    "expand_fraction",
    "policy",
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "seed",
    "repetition_penalty",
    "min_tokens",
    "priority",
    "deadline_ms",
)

_TYPES = {"BYTES": str, "INT64": int, "UINT64": int, "FP32": float}


def add_request_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a request that the command line has; the server chooses those that are not given."""
    tensors = tensors_by_option()
    for name in OPTIONS:
        tensor = tensors[name]
        parser.add_argument("--" + name.replace("_", "-"), type=_TYPES[tensor.datatype], help=tensor.help)
    parser.add_argument(
        "--stop-word", action="append", default=[], dest="stop_words", help="text that ends the answer; may be repeated"
    )


def add_connection_options(parser: argparse.ArgumentParser, timeout_seconds: float = 60.0) -> None:
    parser.add_argument("--url", default="127.0.0.1:8001", help="Triton's gRPC endpoint (default: %(default)s)")
    parser.add_argument(
        "--timeout-seconds", type=float, default=timeout_seconds, help="give up after (default: %(default)s)"
    )


def request_options(arguments: argparse.Namespace) -> GenerateOptions:
    """Return the request's options in parsed `arguments`."""
    return {name: getattr(arguments, name) for name in (*OPTIONS, "stop_words")}  # type: ignore[return-value]
