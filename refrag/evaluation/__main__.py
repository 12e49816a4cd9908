"""Measure a checkpoint on held-out questions and prose: every table as Markdown, and as JSON with --output.

    python -m refrag.evaluation --checkpoint checkpoints/demo --plain plain/decoder --output evaluation.json

All conditions of a table see the same questions, so that their differences are measured in pairs.
"""

import argparse
import functools
import logging
from pathlib import Path

from refrag.errors import RefragError
from refrag.evaluation.conditions import POLICY_OPTIONS, READS_QUESTION
from refrag.evaluation.models import load_models, parse_onnx_encoders
from refrag.evaluation.options import add_options, parsed_options
from refrag.evaluation.report import Report, render
from refrag.evaluation.tables import ONNX_ENCODERS, TABLES, choose_tables
from refrag.machine.threads import flush_denormals


def main() -> None:
    parser = make_parser()
    arguments = parser.parse_args()
    # bm25s logs every index it builds, and rouge-score brings a handler that prints it.
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    try:
        options = parsed_options(arguments)
        report = Report("refrag.evaluation", options.seed, arguments.output)
        policies = {name: getattr(arguments, name) for name in POLICY_OPTIONS}
        onnx_encoders = parse_onnx_encoders(arguments.onnx_encoder)
        models = load_models(arguments.checkpoint, arguments.plain, policies, onnx_encoders)
        for name in choose_tables(arguments.tables, models):
            report.add(name, functools.partial(TABLES[name], models, options))
    except RefragError as error:
        parser.error(str(error))
    print(render(report.values))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m refrag.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    return parser


if __name__ == "__main__":
    flush_denormals()
    main()
