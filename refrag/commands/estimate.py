"""`refrag estimate`: tell memory and hours of each run of a preset on given hardware, without loading weights."""

import argparse
import json
from dataclasses import asdict, fields

from refrag.commands.train import add_preset
from refrag.errors import InvalidRequest

HELP = "tell what training a preset takes on given hardware"
EXTRA = "train"

HARDWARE_HELP = {
    "num_gpus": "GPUs",
    "gpu_memory_gib": "memory of each",
    "gpu_tflops": "peak of each, in the precision of the training",
    "utilisation": "share of the peak reached",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from refrag.training.estimate import Hardware

    add_preset(parser)
    for field in fields(Hardware):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            help=f"{HARDWARE_HELP[field.name]} (default: %(default)s)",
        )


def run(arguments: argparse.Namespace) -> None:
    from refrag.training.estimate import Hardware, estimate, report
    from refrag.training.preset_file import load_preset

    given = {field.name: getattr(arguments, field.name) for field in fields(Hardware)}
    for name, value in given.items():
        if not value > 0:
            raise InvalidRequest(f"{name} is {value:g}; it must be above 0")
    hardware = Hardware(**given)
    found = estimate(load_preset(arguments.preset, arguments.set), hardware)
    print(report(found, hardware))
    print(json.dumps({"hardware": asdict(hardware), "runs": [run.to_json() for run in found]}))
