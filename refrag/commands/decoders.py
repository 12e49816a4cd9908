"""`refrag decoders`: choose the engine that decodes, and make the environment that it needs.

refrag decoders install vllm           makes vLLM's own Python environment, once; run again, it goes on or is done
refrag decoders use vllm               makes vLLM answer in the repository that `refrag export` has made
refrag decoders use torch              makes the engine that comes with refrag answer again
"""

import argparse
import os
from pathlib import Path
from typing import get_args

from refrag.decoders.install import RECIPES, Device, find_device, install, server_environment
from refrag.errors import InvalidRequest

HELP = "choose the engine that decodes, and install what it needs"
EXTRA = "decoder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    acts = parser.add_subparsers(dest="act", metavar="ACT", required=True)
    making = acts.add_parser("install", help="make the environment of a decoder that needs one of its own")
    making.add_argument("decoder", choices=sorted(RECIPES))
    _add_folder(making)
    making.add_argument(
        "--device", choices=get_args(Device), help="what it computes on (default: cuda if NVIDIA's driver is loaded)"
    )
    using = acts.add_parser("use", help="make a decoder answer in a model repository")
    using.add_argument("decoder", help="a name of docs/decoders.md, or of a package of your own")
    using.add_argument("--repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    _add_folder(using)
    using.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of the decoder's own; may be repeated, the others get their defaults",
    )


def run(arguments: argparse.Namespace) -> None:
    folder = arguments.folder or default_folder(arguments.decoder)
    if arguments.act == "install":
        is_new = install(arguments.decoder, folder, arguments.device or find_device())
        print(f"{folder} is {'ready' if is_new else 'ready already'}")
        return
    # Triton's Python backend is not needed to write a config, but the decoder's settings are.
    from refrag.serving.choose_decoder import choose_decoder

    environment = server_environment(folder) if arguments.decoder in RECIPES else None
    choose_decoder(arguments.repository, arguments.decoder, _parse_values(arguments.set), environment)
    print(f"{arguments.repository} decodes with {arguments.decoder}")


def default_folder(decoder: str) -> Path:
    root = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(root) / "refrag" / "decoders" / decoder


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder", type=Path, help="the decoder's environment (default: ~/.local/share/refrag/decoders/NAME)"
    )


def _parse_values(pairs: list[str]) -> dict[str, str]:
    values = dict(pair.partition("=")[::2] for pair in pairs)
    if broken := [pair for pair in pairs if "=" not in pair]:
        raise InvalidRequest(f"--set {broken[0]!r} is not of the form NAME=VALUE")
    return values
