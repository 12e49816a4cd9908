"""Train a REFRAG checkpoint: `python -m refrag.training train demo`.

    train PRESET [RUN …]    the preset's runs in order, or those named; what is over stays, what was begun goes on
    save PRESET OUTPUT      write what a run made (default: the preset's result), or one part of it, to deploy
    log PRESET OUTPUT       write settings, costs and learning curves of all runs as one small JSON file
    estimate PRESET         memory and time of each run on given hardware, without any weights

PRESET is a name in refrag/training/presets or the path of a YAML file, and `--set` changes single values of it:
`--set runs.finetune.optimisation.num_steps=100`. On several GPUs: `accelerate launch -m refrag.training train …`.
"""

import argparse
import json
import sys
from dataclasses import asdict, fields
from pathlib import Path

import torch

from refrag.errors import RefragError
from refrag.machine.threads import flush_denormals
from refrag.training.estimation.estimate import Hardware, estimate, report
from refrag.training.recipe import load_run, summarise_runs, train_all
from refrag.training.settings import load_preset

HARDWARE_HELP = (
    "GPUs",
    "memory of each",
    "peak of each, in the precision of the training",
    "share of the peak reached",
)


def main() -> None:
    try:
        run_command(parse_arguments())
    except RefragError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stop:
        sys.exit(str(stop) or "stopped")


def run_command(arguments: argparse.Namespace) -> None:
    preset = load_preset(arguments.preset, arguments.set)
    runs = arguments.runs or Path("runs") / Path(arguments.preset).stem
    if arguments.command == "train":
        print(json.dumps(train_all(preset, runs, arguments.run)))
    elif arguments.command == "save":
        checkpoint = load_run(preset, runs, arguments.run)
        checkpoint.save(arguments.output, getattr(torch, arguments.dtype), arguments.part)
    elif arguments.command == "estimate":
        hardware = Hardware(**{field.name: getattr(arguments, field.name) for field in fields(Hardware)})
        found = estimate(preset, hardware)
        print(report(found, hardware))
        print(json.dumps({"hardware": asdict(hardware), "runs": [run.to_json() for run in found]}))
    else:
        arguments.output.write_text(json.dumps(summarise_runs(preset, runs), indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m refrag.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("preset", metavar="PRESET", help="a preset's name, or the path of a YAML file")
    common.add_argument("--runs", type=Path, help="folder of the runs (default: runs/PRESET)")
    common.add_argument(
        "--set", action="append", default=[], metavar="PLACE=VALUE", help="change a value of the preset"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", parents=[common], help="train runs of the preset")
    train.add_argument("run", metavar="RUN", nargs="*", help="runs to train (default: all)")
    save = commands.add_parser("save", parents=[common], help="write a run's checkpoint, or one part of it")
    save.add_argument("output", metavar="OUTPUT", type=Path, help="folder to write to")
    save.add_argument("--run", help="whose checkpoint (default: the preset's result)")
    save.add_argument("--part", choices=["decoder", "policy"], help="this part alone (default: all)")
    save.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float16")
    log = commands.add_parser("log", parents=[common], help="write the learning curves of all runs")
    log.add_argument("output", metavar="OUTPUT", type=Path, help="JSON file to write")
    costs = commands.add_parser("estimate", parents=[common], help="memory and time of each run, without weights")
    for field, text in zip(fields(Hardware), HARDWARE_HELP, strict=True):
        option = f"--{field.name.replace('_', '-')}"
        kind = type(field.default)
        costs.add_argument(option, type=kind, default=field.default, help=f"{text} (default: {field.default})")
    return parser.parse_args()


if __name__ == "__main__":
    flush_denormals()
    main()
