"""Evaluates a checkpoint on one question set: reads it, asks what is still missing, and writes the report."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refrag.data.questions.passages import find_pool
from refrag.data.questions.read import Form, detect_form, read_questions
from refrag.data.questions.row import QuestionRow
from refrag.evaluation.models import Models, load_models
from refrag.evaluation.questions.answers_file import AnswersFile, digest_files
from refrag.evaluation.questions.conditions import parse_conditions
from refrag.evaluation.questions.options import QuestionOptions
from refrag.evaluation.questions.run import QuestionRun
from refrag.evaluation.questions.summary import summarise
from refrag.machine.environment import describe_environment

ANSWERS_SUFFIX = ".answers.jsonl"


@dataclass(frozen=True)
class Inputs:
    """What to read: the models, and a question set as `read_questions` takes it."""

    checkpoint: Path
    plain: Path | None
    data: Path
    form: Form | None = None
    passages: Path | None = None
    split: str | None = None


def evaluate_questions(
    inputs: Inputs, conditions: Sequence[str], options: QuestionOptions, output: Path
) -> dict[str, Any]:
    """Return the report, which is written to `output` too; answers go to a file beside it, where a next run goes on."""
    rows = read_rows(inputs, options)
    models = load_models(inputs.checkpoint, inputs.plain)
    run = QuestionRun(models, rows, parse_conditions(conditions, models.checkpoint.config.chunk_size), options)
    file = AnswersFile(output.with_suffix(ANSWERS_SUFFIX), identify(inputs, options))
    run.answer_all(file)
    report = {**_describe(inputs, models, options), **summarise(run, file)}
    output.write_text(json.dumps(report, indent=2) + "\n")
    return report


def read_rows(inputs: Inputs, options: QuestionOptions) -> list[QuestionRow]:
    """Return the rows in an order that the seed draws, so that an unfinished run has asked a fair sample."""
    return read_questions(
        inputs.data,
        inputs.form,
        inputs.passages,
        num_rows=options.num_rows or sys.maxsize,
        seed=options.seed,
        depth=options.depth,
        split=inputs.split,
    )


def identify(inputs: Inputs, options: QuestionOptions) -> dict[str, Any]:
    """Return everything that an answer depends on, weights and data by their hashes."""
    return {
        "checkpoint": digest_files(inputs.checkpoint),
        "plain": None if inputs.plain is None else digest_files(inputs.plain),
        "data": digest_files(inputs.data),
        "passages": _digest_passages(inputs),
        "split": inputs.split,
        **options.identity(),
    }


def _digest_passages(inputs: Inputs) -> str | None:
    """Return the hash of the passage file, for the forms that have one of its own."""
    if inputs.passages is not None:
        return digest_files(inputs.passages)
    inside = (inputs.form or detect_form(inputs.data)) in ("squad", "beir")
    return None if inside else digest_files(find_pool(inputs.data))


def _describe(inputs: Inputs, models: Models, options: QuestionOptions) -> dict[str, Any]:
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        **describe_environment(),
        "plain_name": models.plain_name,
        "data": inputs.data.name,
        "seed": options.seed,
        "options": {**options.identity(), "num_rows": options.num_rows},
    }
