"""The embedded server's options: name, default and help are written once, and the command line is derived from them."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


def option(default: Any, help: str, parse: Callable[[str], Any] = str, repeated: bool = False) -> Any:
    metadata = {"help": help, "parse": parse, "repeated": repeated}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def parse_bool(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false; write one of them")
    return text == "true"


def parse_variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    return name, value


@dataclass(frozen=True)
class ServerSettings:
    """Options of the embedded server. Raises ValueError for a value that is not allowed, with its name."""

    model_repository: Path = option(Path("model_repository"), "folder that holds one folder per model", Path)  # noqa: RUF009
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 serves other machines, without any access control")
    http_port: int = option(8000, "HTTP port; 0 picks a free one", int)
    grpc_port: int = option(8001, "gRPC port; 0 picks a free one", int)
    metrics_port: int = option(8002, "port of the Prometheus metrics; 0 picks a free one", int)
    model_config_name: str | None = option(None, "use <model>/configs/NAME.pbtxt where a model has it")
    log_path: Path | None = option(None, "file to append the server's log to, instead of a temporary one", Path)  # noqa: RUF009
    ready_timeout_seconds: float = option(120.0, "seconds that loading all models may take", float)
    drain_timeout_seconds: int = option(
        10, "seconds that running requests may take to finish when the server is stopped", int
    )
    gpu_metrics: bool = option(False, "export NVIDIA GPU metrics (true or false)", parse_bool)
    environment: Mapping[str, str] = option(
        {}, "NAME=VALUE, an environment variable of the server and its Python models", parse_variable, repeated=True
    )
    server_arguments: tuple[str, ...] = option(
        (), "argument passed on to tritonserver, such as --log-verbose=1", repeated=True
    )

    def __post_init__(self) -> None:
        fixed_ports = [port for port in self.ports.values() if port != 0]
        for name, port in self.ports.items():
            if not 0 <= port <= 65535:
                raise ValueError(f"{name}_port is {port}; a port lies between 0 (pick a free one) and 65535")
        if len(set(fixed_ports)) < len(fixed_ports):
            raise ValueError(f"http, grpc and metrics need three different ports, got {fixed_ports}")
        if self.ready_timeout_seconds <= 0:
            raise ValueError(f"ready_timeout_seconds is {self.ready_timeout_seconds}; it must be above 0")
        if self.drain_timeout_seconds < 1:
            raise ValueError(f"drain_timeout_seconds is {self.drain_timeout_seconds}; it must be at least 1")

    @property
    def ports(self) -> dict[str, int]:
        return {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}


def add_options(parser: argparse.ArgumentParser) -> None:
    for each in fields(ServerSettings):
        flag = "--" + each.name.replace("_", "-")
        if each.metadata["repeated"]:
            help_text = each.metadata["help"] + "; may be repeated"
            parser.add_argument(flag, action="append", default=[], type=each.metadata["parse"], help=help_text)
        else:
            help_text = f"{each.metadata['help']} (default: {each.default})"
            parser.add_argument(flag, default=each.default, type=each.metadata["parse"], help=help_text)


def settings_from_arguments(arguments: argparse.Namespace) -> ServerSettings:
    """Return the options as settings; raise ValueError for one that is not allowed, or that contradicts another."""
    options = {each.name: getattr(arguments, each.name) for each in fields(ServerSettings)}
    options["environment"] = dict(options["environment"])
    options["server_arguments"] = tuple(options["server_arguments"])
    return ServerSettings(**options)
