"""`refrag teach`: teach a checkpoint your own passages, without a single label.

The checkpoint's decoder answers requests made of the passages, which it reads in full; then the checkpoint learns to
give the same answers, and the same distributions before each of their tokens, from the compressed passages. Passages
that are held out tell whether that has brought it nearer to its plain self.

    OUTPUT/targets/            requests, the plain decoder's answers and distributions
    OUTPUT/held-out/           the same for passages that nothing is learned from
    OUTPUT/runs/               the run, which resumes
    OUTPUT/checkpoint/         what to export
    OUTPUT/before.json, OUTPUT/after.json, OUTPUT/fidelity.json
    OUTPUT/settings.json       what all of it depends on

A second call goes on where the first one stopped; one with other settings is refused.
"""

import argparse
import json
import logging
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from refrag.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refrag.data.questions.row import SourcePassage
    from refrag.training.preset import Preset

HELP = "teach a checkpoint your own passages, without labels"
EXTRA = "train,evaluate"

# Passages that requests are about are few, but their neighbours are to be found among all of the same part.
FEWEST_PASSAGES = 20
HELD_OUT_SHARE = 0.2
# Smallest numbers that options may have. Requests that are held out are each other's controls.
SMALLEST = {"num_rows": 1, "num_held_out": 2, "num_passages": 1, "max_tokens": 1}
# Folders of the requests to learn from, and of those to judge by.
LEARNED, HELD_OUT = "targets", "held-out"
NUM_NEIGHBOURS = 10
# Options on which everything depends, beside the checkpoint and the passages; the run itself keeps what --set changes.
SETTINGS = ("num_rows", "num_held_out", "num_passages", "max_tokens", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="folder to write to")
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint to teach, and its own teacher")
    parser.add_argument(
        "--passages",
        type=Path,
        required=True,
        help="file of passages: JSON lines with text and perhaps title, or plain text with blank lines between",
    )
    parser.add_argument("--num-rows", type=int, default=400, help="requests to learn from (default: %(default)s)")
    parser.add_argument("--num-held-out", type=int, default=40, help="requests to judge by (default: %(default)s)")
    parser.add_argument("--num-passages", type=int, default=3, help="passages read at once (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=32, help="most tokens of an answer (default: %(default)s)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PLACE=VALUE",
        help="change a value of the preset teach, such as runs.teach.optimisation.num_steps=500",
    )
    parser.add_argument("--seed", type=int, default=0, help="draws passages and requests (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    from refrag.evaluation.questions.comparison import compare_fidelity, render_comparison
    from refrag.machine.environment import describe_environment
    from refrag.machine.threads import flush_denormals

    flush_denormals()
    # bm25s logs every index that it builds.
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    output: Path = arguments.output
    refuse_too_small(arguments)
    learned, held_out = split_passages(arguments.passages, arguments.seed)
    preset = fill_in_preset(arguments)
    keep_settings(arguments)
    parts = {LEARNED: (learned, arguments.num_rows), HELD_OUT: (held_out, arguments.num_held_out)}
    write_requests(arguments, preset, parts)
    train(preset, output)
    before = judge(arguments, arguments.checkpoint, output / "before.json")
    after = judge(arguments, output / "checkpoint", output / "after.json")
    conditions = sorted({condition for _, condition in before} & {condition for _, condition in after} - {"plain"})
    rows = compare_fidelity(before, after, conditions, arguments.seed)
    report = {"command": " ".join(["refrag", *sys.argv[1:]]), **describe_environment(), "rows": rows}
    (output / "fidelity.json").write_text(json.dumps(report, indent=1) + "\n")
    print(render_comparison(report))
    print(json.dumps({"checkpoint": str(output / "checkpoint"), "fidelity": str(output / "fidelity.json")}))


def refuse_too_small(arguments: argparse.Namespace) -> None:
    """Raise InvalidRequest for options with which nothing could be learned, or be compared at the end."""
    for name, smallest in SMALLEST.items():
        if (given := getattr(arguments, name)) < smallest:
            raise InvalidRequest(f"{name} is {given}; it must be at least {smallest}")


def split_passages(file: Path, seed: int) -> "tuple[list[SourcePassage], list[SourcePassage]]":
    """Return the passages to learn from, and those held out, each text once.

    Raise InvalidRequest for fewer than FEWEST_PASSAGES.
    """
    pool = list({one.content: one for one in _read(file)}.values())
    if len(pool) < FEWEST_PASSAGES:
        raise InvalidRequest(
            f"{file} holds {len(pool)} different passages, of which a fifth is held out to judge by; give at least "
            f"{FEWEST_PASSAGES}"
        )
    random.Random(seed).shuffle(pool)
    count = round(HELD_OUT_SHARE * len(pool))
    return pool[count:], pool[:count]


def _read(file: Path) -> "list[SourcePassage]":
    from refrag.data.passages import read_passages
    from refrag.data.questions.passages import read_pool
    from refrag.data.questions.row import SourcePassage

    if {".jsonl", ".tsv"}.intersection(file.suffixes):
        return list(read_pool(file).values())
    return [SourcePassage(str(number), "", text) for number, text in enumerate(read_passages(file), start=1)]


def fill_in_preset(arguments: argparse.Namespace) -> "Preset":
    from refrag.training.preset_file import load_preset

    places = {
        "data": str(arguments.output / LEARNED),
        "runs.teach.start": str(arguments.checkpoint),
        "runs.teach.max_passages": arguments.num_passages,
    }
    return load_preset("teach", [*(f"{place}={json.dumps(value)}" for place, value in places.items()), *arguments.set])


def keep_settings(arguments: argparse.Namespace) -> None:
    """Write what the folder depends on, or raise InvalidRequest if it was begun with something else.

    Until the first requests are written, nothing depends on it: options that were refused may be corrected.
    """
    from refrag.evaluation.questions.identity import digest_files, digest_model
    from refrag.training.targets import TARGETS

    file = arguments.output / "settings.json"
    settings = {
        "checkpoint": digest_model(arguments.checkpoint),
        "passages": digest_files([arguments.passages], arguments.passages.parent),
        **{name: getattr(arguments, name) for name in SETTINGS},
    }
    if not file.exists() or not any((arguments.output / name / TARGETS).exists() for name in (LEARNED, HELD_OUT)):
        arguments.output.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings, indent=1) + "\n")
        return
    begun = json.loads(file.read_text())
    if changed := [f"{name} was {begun[name]} and is {now}" for name, now in settings.items() if begun[name] != now]:
        raise InvalidRequest(
            f"{arguments.output} was begun with other settings: {'; '.join(changed)}; give the same ones, name another "
            "folder, or remove this one to begin anew"
        )


def write_requests(
    arguments: argparse.Namespace, preset: "Preset", parts: "Mapping[str, tuple[list[SourcePassage], int]]"
) -> None:
    """Write each part's requests with the plain decoder's answers, so many about these passages, into its folder.

    What an earlier call has written stays. Raise TrainingError before the first if the decoder, which is the student's
    too, cannot be trained as the preset asks.
    """
    from refrag.data.questions.unlabelled import ask_unlabelled
    from refrag.evaluation.questions.identity import digest_model
    from refrag.model.checkpoint import load_checkpoint
    from refrag.training.fit import refuse_packing
    from refrag.training.targets import TARGETS, write_targets

    missing = [name for name in parts if not (arguments.output / name / TARGETS).exists()]
    if not missing:
        return
    teacher, identity = load_checkpoint(arguments.checkpoint), digest_model(arguments.checkpoint)
    refuse_packing(teacher.decoder, preset.runs[preset.result])
    for name in missing:
        passages, num_rows = parts[name]
        num_neighbours = min(len(passages), max(NUM_NEIGHBOURS, arguments.num_passages))
        rows = ask_unlabelled(passages, num_rows, num_neighbours, arguments.seed)
        folder = arguments.output / name
        options = (arguments.num_passages, arguments.max_tokens)
        write_targets(teacher.decoder, teacher.chunker, rows, *options, folder, identity)


def train(preset: "Preset", output: Path) -> None:
    """Train the preset's run, resuming it, and write its checkpoint in half precision.

    A checkpoint of an earlier training, whose run was removed, gives way, and so do the answers that judged it.
    """
    import torch

    from refrag.config import CONFIG_NAME, RefragConfig
    from refrag.training.recipe import load_run, train_all

    cost = train_all(preset, output / "runs")[preset.result]
    checkpoint = output / "checkpoint"
    # The file is there once all of a checkpoint is.
    is_saved = (checkpoint / CONFIG_NAME).exists()
    if is_saved and RefragConfig.load(checkpoint).provenance["runs"][preset.result] == cost:
        return
    for path in output.glob("after.*"):
        path.unlink()
    load_run(preset, output / "runs").save(checkpoint, torch.float16)


def judge(arguments: argparse.Namespace, checkpoint: Path, report: Path) -> dict[tuple[str, str], dict[str, object]]:
    """Return the checkpoint's answers to the held-out requests, compared with the teacher's plain ones."""
    from refrag.config import LEARNED_POLICY, RefragConfig
    from refrag.evaluation.questions.answers_file import AnswersFile
    from refrag.evaluation.questions.evaluate import evaluate_questions
    from refrag.evaluation.questions.identity import Inputs, identify
    from refrag.evaluation.questions.options import QuestionOptions
    from refrag.evaluation.questions.part import answers_path
    from refrag.training.targets import QUESTIONS

    selection = "learned" if RefragConfig.load(checkpoint).policy == LEARNED_POLICY else "similarity"
    inputs = Inputs(checkpoint, arguments.checkpoint, arguments.output / HELD_OUT / QUESTIONS)
    options = QuestionOptions(num_passages=arguments.num_passages, max_tokens=arguments.max_tokens, seed=arguments.seed)
    evaluate_questions(inputs, ["none", "plain", "p=0", f"p=0.2:{selection}"], options, report)
    return dict(AnswersFile(answers_path(report), identify(inputs, options)).answers)
