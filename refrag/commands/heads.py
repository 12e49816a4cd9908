"""`refrag heads`: find the attention heads by which a checkpoint's decoder chooses the chunks to expand.

The policy `attention` reads them. They are found on questions whose evidence is known, over compressed passages, and
stored beside refrag.json with a hash of the decoder's weights: find them anew after every training. Take rows that
neither trained the checkpoint nor will judge it.

    refrag heads find --checkpoint checkpoints/mine --data valid.jsonl.gz --num-rows 600
"""

import argparse
import logging
from pathlib import Path

HELP = "find the attention heads by which a decoder chooses chunks"
EXTRA = "evaluate"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from refrag.data.questions.read import DEFAULT_DEPTH, FORMS

    actions = parser.add_subparsers(required=True, metavar="ACTION")
    find = actions.add_parser("find", help="find the heads and store them in the checkpoint", description=__doc__)
    find.formatter_class = argparse.RawDescriptionHelpFormatter
    find.add_argument("--checkpoint", type=Path, required=True, help="folder of a REFRAG checkpoint")
    find.add_argument("--data", type=Path, required=True, help="file of questions, or folder of the form beir")
    find.add_argument("--form", choices=FORMS, help="form of the data (default: detected)")
    find.add_argument("--passages", type=Path, help="file of passages (default: the one beside the questions)")
    find.add_argument("--split", help="name of the judgements, for the form beir (default: test)")
    find.add_argument("--num-rows", type=int, default=600, help="rows to draw (default: %(default)s)")
    find.add_argument(
        "--num-held-out", type=int, default=200, help="of which so many only judge the heads (default: %(default)s)"
    )
    find.add_argument("--num-passages", type=int, default=10, help="passages per question (default: %(default)s)")
    find.add_argument(
        "--depth", type=int, default=DEFAULT_DEPTH, help="passages to search for, where a question lists none"
    )
    find.add_argument("--seed", type=int, default=0, help="draws the rows and the order of passages")
    find.add_argument("--report", type=Path, help="JSON file to write, with how often policies find the evidence")
    find.add_argument("--dry-run", action="store_true", help="leave the checkpoint as it is")


def run(arguments: argparse.Namespace) -> None:
    from refrag.data.questions.read import read_questions
    from refrag.evaluation.heads.report import render, search, write
    from refrag.machine.threads import flush_denormals

    flush_denormals()
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    rows = read_questions(
        arguments.data,
        arguments.form,
        arguments.passages,
        num_rows=arguments.num_rows,
        seed=arguments.seed,
        depth=arguments.depth,
        split=arguments.split,
    )
    heads, report = search(arguments.checkpoint, rows, arguments.num_held_out, arguments.num_passages, arguments.seed)
    if arguments.report is not None:
        write(report, arguments.report)
    if not arguments.dry_run:
        heads.save(arguments.checkpoint)
    print(render(report))
