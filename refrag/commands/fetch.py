"""`refrag fetch`: fetch the base models that a checkpoint or a preset names, and print where each one is.

WHAT is a folder with refrag.json, the name of a preset that comes with refrag, or the path of a preset's YAML file.
Each model is downloaded once, into $REFRAG_CACHE or the user's cache folder, and needs no network afterwards.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refrag.base_models.reference import BaseModel

HELP = "fetch the base models that a checkpoint or a preset names"
EXTRA = "train"

# What a part says that names no base model.
INSIDE = "none to fetch: the checkpoint holds it, or training makes it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="WHAT", help="checkpoint or preset")


def run(arguments: argparse.Namespace) -> None:
    from refrag.base_models.cache import resolve

    for part, base in _bases_of(arguments.what).items():
        print(f"{part}: {INSIDE if base is None else f'{base} is in {resolve(base)}'}", flush=True)


def _bases_of(what: str) -> "dict[str, BaseModel | None]":
    from refrag.config import CONFIG_NAME, RefragConfig

    if (Path(what) / CONFIG_NAME).exists():
        config = RefragConfig.load(Path(what))
        return {"decoder": config.decoder_base, "encoder": config.encoder_base}
    from refrag.training.preset_file import load_preset

    pair = load_preset(what).require_pair()
    return {"decoder": pair.decoder.base, "encoder": pair.encoder.base}
