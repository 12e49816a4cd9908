"""`refrag train`: train the runs of a preset, stage by stage, and write their results.

    run PRESET [RUN …]      train the preset's runs in order, or those named; skip finished runs, resume begun ones
    save PRESET OUTPUT      write a run's checkpoint to deploy (default: the preset's result), or one part of it
    log PRESET OUTPUT       write settings, costs and learning curves of all runs as one small JSON file
    targets OUTPUT          let a decoder that reads passages in full answer questions, or requests made of passages
                            alone, and write its answers and distributions for fine-tuning to learn from

PRESET is the name of a preset that comes with refrag, such as smollm2, or the path of a YAML file. `--set` changes
single values of it: `--set runs.finetune.optimisation.num_steps=100`. On several GPUs: `accelerate launch …
--no_python refrag train run PRESET`. `refrag estimate PRESET` tells beforehand what memory and time it needs.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refrag.training.preset import Preset

Action = Callable[[argparse.Namespace, "Preset", Path], None]

NUM_REQUESTS, NUM_NEIGHBOURS = 1000, 10

HELP = "train a checkpoint, or write what was trained"
EXTRA = "train"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    train = _add_action(actions, "run", "train runs of the preset", _train)
    train.add_argument("names", metavar="RUN", nargs="*", help="runs to train (default: all)")
    save = _add_action(actions, "save", "write a run's checkpoint, or one part of it", _save)
    save.add_argument("output", metavar="OUTPUT", type=Path, help="folder to write to")
    save.add_argument("--run", dest="name", help="whose checkpoint (default: the preset's result)")
    save.add_argument("--part", choices=["decoder", "policy"], help="this part alone (default: all)")
    save.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float16")
    log = _add_action(actions, "log", "write the learning curves of all runs", _log)
    log.add_argument("output", metavar="OUTPUT", type=Path, help="JSON file to write")
    _add_targets(actions)


def add_preset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", metavar="PRESET", help="a preset's name, or the path of a YAML file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PLACE=VALUE", help="change a value of the preset"
    )


def run(arguments: argparse.Namespace) -> None:
    from refrag.training.preset_file import load_preset

    if "preset" not in arguments:
        _write_targets(arguments)
        return
    preset = load_preset(arguments.preset, arguments.set)
    arguments.action(arguments, preset, arguments.runs or Path("runs") / Path(arguments.preset).stem)


def _add_action(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str, action: Action
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, description=text)
    add_preset(parser)
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: runs/PRESET)")
    parser.set_defaults(action=action)
    return parser


def _add_targets(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "write a teacher's answers and distributions"
    parser = actions.add_parser("targets", help=text, description=text)
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="folder to write to")
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint whose decoder is the teacher")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--questions", type=Path, help="question set to answer, with or without answers of its own")
    source.add_argument(
        "--passages", type=Path, help="file of passages, for which requests are made: no label is needed"
    )
    parser.add_argument("--num-rows", type=int, help="rows to draw (default: all questions, or 1000 requests)")
    parser.add_argument("--num-passages", type=int, default=3, help="passages that the teacher reads (default: 3)")
    parser.add_argument("--max-tokens", type=int, default=48, help="most tokens of an answer (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="draws rows and requests (default: %(default)s)")


def _write_targets(arguments: argparse.Namespace) -> None:
    from refrag.data.questions.passages import read_pool
    from refrag.data.questions.read import read_questions
    from refrag.data.questions.unlabelled import ask_unlabelled
    from refrag.evaluation.questions.identity import digest_model
    from refrag.machine.threads import flush_denormals
    from refrag.model.checkpoint import load_checkpoint
    from refrag.training.targets import write_targets

    flush_denormals()
    if arguments.questions is not None:
        rows = read_questions(arguments.questions, num_rows=arguments.num_rows, seed=arguments.seed)
    else:
        pool = list(read_pool(arguments.passages).values())
        num_rows = NUM_REQUESTS if arguments.num_rows is None else arguments.num_rows
        # Neighbours that the teacher does not read, for students that read more passages.
        rows = ask_unlabelled(pool, num_rows, max(NUM_NEIGHBOURS, arguments.num_passages), arguments.seed)
    checkpoint = load_checkpoint(arguments.checkpoint)
    options = (arguments.num_passages, arguments.max_tokens)
    teacher = digest_model(arguments.checkpoint)
    write_targets(checkpoint.decoder, checkpoint.chunker, rows, *options, arguments.output, teacher)
    print(json.dumps({"num_rows": len(rows), "output": str(arguments.output)}))


def _train(arguments: argparse.Namespace, preset: "Preset", runs: Path) -> None:
    from refrag.machine.threads import flush_denormals
    from refrag.training.recipe import train_all

    flush_denormals()
    print(json.dumps(train_all(preset, runs, arguments.names)))


def _save(arguments: argparse.Namespace, preset: "Preset", runs: Path) -> None:
    import torch

    from refrag.training.recipe import load_run

    checkpoint = load_run(preset, runs, arguments.name)
    checkpoint.save(arguments.output, getattr(torch, arguments.dtype), arguments.part)


def _log(arguments: argparse.Namespace, preset: "Preset", runs: Path) -> None:
    from refrag.training.recipe import summarise_runs

    arguments.output.write_text(json.dumps(summarise_runs(preset, runs), indent=1) + "\n")
