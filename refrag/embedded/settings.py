"""The embedded server's options: name, default and help are written once, and the command line is derived from them."""

import argparse
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

ON_FAILURE = ("restart", "exit")
# By this argument a caller wants a key from some kinds of requests; Triton's names of two kinds.
HTTP_RESTRICTION = "--http-restricted-api"
HEALTH, INFERENCE = "health", "inference"
ADMIN_KEY = re.compile(r"[\w-]+", re.ASCII)


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
    on_failure: str = option("restart", "restart, or exit, when the server or a model process of it fails")
    max_restarts: int = option(5, "restarts within ten minutes, after which the server gives up", int)
    probe_seconds: float = option(
        30.0, "seconds between questions that the server asks itself to see whether it answers; 0 asks none", float
    )
    admin_key: str | None = option(
        None, "value of the header admin-key that opens protocols closed by default (default: random)"
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
        if self.on_failure not in ON_FAILURE:
            raise ValueError(f"on_failure is {self.on_failure!r}; it must be {' or '.join(ON_FAILURE)}")
        if self.max_restarts < 1:
            raise ValueError(f"max_restarts is {self.max_restarts}; give at least 1, or on_failure=exit for none")
        if not 0 <= self.probe_seconds < math.inf:
            raise ValueError(f"probe_seconds is {self.probe_seconds}; give 0, which asks no questions, or more")
        if self.closes(HEALTH):
            raise ValueError(
                f"server_arguments closes {HEALTH} on HTTP, by which a server is seen to be ready; leave that open"
            )
        for name, value in self.environment.items():
            if not isinstance(value, str):
                raise ValueError(f"environment has {name} = {value!r}; give text")
        if self.admin_key is not None and not ADMIN_KEY.fullmatch(self.admin_key):
            raise ValueError("admin_key must be one or more letters, digits, - and _")

    @property
    def ports(self) -> dict[str, int]:
        return {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}

    @property
    def is_reachable_from_outside(self) -> bool:
        return not (self.host == "localhost" or self.host.startswith("127."))

    @property
    def joined_arguments(self) -> list[str]:
        """Return the server's arguments, `--flag value` in two of them as `--flag=value`, which Triton takes alike."""
        joined: list[str] = []
        for argument in self.server_arguments:
            if joined and not argument.startswith("-") and joined[-1].startswith("--") and "=" not in joined[-1]:
                joined[-1] += f"={argument}"
            else:
                joined.append(argument)
        return joined

    def closes(self, protocol: str) -> bool:
        """Return whether the server's arguments want a key from HTTP requests of this kind."""
        flag = f"{HTTP_RESTRICTION}="
        restrictions = [each.removeprefix(flag) for each in self.joined_arguments if each.startswith(flag)]
        return any(protocol in each.partition(":")[0].split(",") for each in restrictions)

    def address(self, name: str) -> str:
        """Return host and port of `name`, one of `ports`, for a client on this machine."""
        port = self.ports[name]
        if port == 0:
            raise RuntimeError(
                "the port is 0, and start() picks a free one; start() the server before asking for an address"
            )
        # A client cannot connect to "every address of this machine".
        return f"{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{port}"


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
