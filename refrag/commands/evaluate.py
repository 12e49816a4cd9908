"""`refrag evaluate`: measure a checkpoint on held-out questions and prose, and compare the stages of its training.

    run           make the tables of one checkpoint, as Markdown, and with --output as JSON too
    questions     ask a file of questions over real passages, compressed and plain
    ablations     compare checkpoints of several runs: the paper's Tables 11 and 12
    report FILE   print such a JSON file as Markdown

All conditions of a table see the same questions or windows, so that their differences are paired.

    refrag evaluate run --checkpoint checkpoints/world --plain plain/decoder --output evaluation.json
    refrag evaluate questions --checkpoint checkpoints/mine --data dev-v2.0.json --num-rows 200 --output squad.json
    refrag evaluate ablations --reconstruction curriculum=runs/one/checkpoint none=runs/other/checkpoint
"""

import argparse
import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path

from refrag.errors import InvalidRequest

HELP = "measure a checkpoint on held-out questions and prose"
EXTRA = "evaluate"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    _add_run_options(_add_action(actions, "run", "make the tables of one checkpoint", _run))
    _add_question_options(_add_action(actions, "questions", "ask a file of questions, compressed and plain", _ask))
    _add_ablation_options(_add_action(actions, "ablations", "compare checkpoints of several runs", _compare))
    report = _add_action(actions, "report", "print a JSON file of the three as Markdown", _report)
    report.add_argument("evaluation", metavar="FILE", type=Path, help="JSON file that --output wrote")


def run(arguments: argparse.Namespace) -> None:
    arguments.action(arguments)


def _add_action(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    action: Callable[[argparse.Namespace], None],
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, description=text)
    parser.set_defaults(action=action)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    from refrag.evaluation.conditions import POLICY_OPTIONS, READS_QUESTION
    from refrag.evaluation.options import add_options
    from refrag.evaluation.tables import ONNX_ENCODERS, TABLES

    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of a REFRAG checkpoint")
    parser.add_argument(
        "--plain",
        type=Path,
        help="Hugging Face decoder for uncompressed contexts, trained on the same data (default: the checkpoint's own)",
    )
    for name, option in POLICY_OPTIONS.items():
        sight = "sees" if READS_QUESTION[name] else "does not see"
        text = f"weights of a policy that {sight} the question and learned from reward alone"
        parser.add_argument(option, dest=name, metavar="POLICY", type=Path, help=text)
    parser.add_argument(
        "--onnx-encoder",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="files exported from the checkpoint's encoder",
    )
    parser.add_argument(
        "--tables",
        nargs="+",
        choices=list(TABLES),
        help=f"default: all, {ONNX_ENCODERS} only where --onnx-encoder names some",
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    add_options(parser)


def _add_question_options(parser: argparse.ArgumentParser) -> None:
    from refrag.data.questions.read import FORMS
    from refrag.evaluation.options import add_options
    from refrag.evaluation.questions.conditions import DEFAULT_CONDITIONS
    from refrag.evaluation.questions.execution import Execution
    from refrag.evaluation.questions.options import QuestionOptions

    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of a REFRAG checkpoint")
    parser.add_argument(
        "--plain",
        type=Path,
        help="decoder for uncompressed contexts: a Hugging Face folder or a checkpoint (default: the checkpoint's own)",
    )
    parser.add_argument("--data", type=Path, required=True, help="file of questions, or folder of the form beir")
    parser.add_argument("--form", choices=FORMS, help="form of the data (default: detected)")
    parser.add_argument("--passages", type=Path, help="file of passages (default: the one beside the questions)")
    parser.add_argument("--split", help="name of the judgements, for the form beir (default: test)")
    parser.add_argument(
        "--conditions",
        nargs="+",
        default=DEFAULT_CONDITIONS,
        metavar="CONDITION",
        help="none, plain, gold, plain:p=0.1, p=0, p=0.1:POLICY, p=0:shuffled, with k=8: in front for another chunk "
        f"size; no context, plain, p=0 and its controls are always there (default: {' '.join(DEFAULT_CONDITIONS)})",
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write; answers are kept beside it")
    add_options(parser, QuestionOptions)
    add_options(parser, Execution)
    parser.add_argument(
        "--part",
        metavar="I/N",
        help="answer every N-th row from the I-th on into a file of their own, and write no report; a run without it "
        "takes over what parts have answered (default: all rows)",
    )


def _add_ablation_options(parser: argparse.ArgumentParser) -> None:
    from refrag.evaluation.ablations import MEASURES

    for task in MEASURES:
        parser.add_argument(
            f"--{task}", nargs="+", default=[], metavar="NAME=CHECKPOINT", help=f"runs to compare on {task}"
        )
    parser.add_argument("--num-windows", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument(
        "--seed", type=int, default=0, help="draws the windows and the resamples (default: %(default)s)"
    )


def _run(arguments: argparse.Namespace) -> None:
    from refrag.evaluation.conditions import POLICY_OPTIONS
    from refrag.evaluation.models import load_models, parse_onnx_encoders
    from refrag.evaluation.options import Options, parsed_options
    from refrag.evaluation.report import Report, render
    from refrag.evaluation.tables import TABLES, choose_tables
    from refrag.machine.threads import flush_denormals

    flush_denormals()
    # bm25s logs every index that it builds, and rouge-score installs a handler that prints these logs.
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    options = parsed_options(arguments, Options)
    report = Report(options.seed, arguments.output)
    policies = {name: getattr(arguments, name) for name in POLICY_OPTIONS}
    onnx_encoders = parse_onnx_encoders(arguments.onnx_encoder)
    models = load_models(arguments.checkpoint, arguments.plain, policies, onnx_encoders)
    for name in choose_tables(arguments.tables, models):
        report.add(name, functools.partial(TABLES[name], models, options))
    print(render(report.values))


def _ask(arguments: argparse.Namespace) -> None:
    from refrag.evaluation.options import parsed_options
    from refrag.evaluation.questions.evaluate import answer_part, evaluate_questions
    from refrag.evaluation.questions.execution import Execution
    from refrag.evaluation.questions.identity import Inputs
    from refrag.evaluation.questions.options import QuestionOptions
    from refrag.evaluation.questions.part import Part
    from refrag.evaluation.questions.summary import render
    from refrag.machine.threads import flush_denormals

    flush_denormals()
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    inputs = Inputs(
        arguments.checkpoint, arguments.plain, arguments.data, arguments.form, arguments.passages, arguments.split
    )
    options = parsed_options(arguments, QuestionOptions)
    execution = parsed_options(arguments, Execution)
    if arguments.part is not None:
        part = Part.parse(arguments.part)
        print(answer_part(inputs, arguments.conditions, options, arguments.output, execution, part))
        return
    print(render(evaluate_questions(inputs, arguments.conditions, options, arguments.output, execution)))


def _compare(arguments: argparse.Namespace) -> None:
    from refrag.evaluation.ablations import MEASURES, compare_runs
    from refrag.evaluation.options import parse_named_paths
    from refrag.evaluation.report import Report, render
    from refrag.machine.threads import flush_denormals

    flush_denormals()
    runs = {task: parse_named_paths(getattr(arguments, task), "a run", "NAME=CHECKPOINT") for task in MEASURES}
    if not any(runs.values()):
        raise InvalidRequest(f"nothing to compare; name runs with {' or '.join(f'--{task}' for task in MEASURES)}")
    report = Report(arguments.seed, arguments.output)
    compare_runs(report, runs, arguments.num_windows, arguments.seed)
    print(render(report.values))


def _report(arguments: argparse.Namespace) -> None:
    from refrag.evaluation.questions import summary
    from refrag.evaluation.report import render

    try:
        values = json.loads(arguments.evaluation.read_text())
        print(summary.render(values) if values.get("kind") == summary.KIND else render(values))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRequest(f"{arguments.evaluation} is no evaluation that can be read: {error}") from error
