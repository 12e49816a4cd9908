"""Command-line options derived from GenerateRequest, whose names and help they take."""

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

_TYPES = {"BYTES": str, "INT32": int, "UINT64": int, "FP32": float}


def add_request_options(parser: argparse.ArgumentParser) -> None:
    """Add every option a request can have; one that is not given stays the server's to choose."""
    tensors = tensors_by_option()
    for name in OPTIONS:
        tensor = tensors[name]
        parser.add_argument("--" + name.replace("_", "-"), type=_TYPES[tensor.datatype], help=tensor.help)
    parser.add_argument(
        "--stop-word", action="append", default=[], dest="stop_words", help="text that ends the answer; may be repeated"
    )


def request_options(arguments: argparse.Namespace) -> GenerateOptions:
    """The options of the request in parsed `arguments`."""
    return {name: getattr(arguments, name) for name in (*OPTIONS, "stop_words")}  # type: ignore[return-value]
