"""Evaluates a checkpoint on one question set: reads it, asks what is still missing, and writes the report."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from refrag.data.questions.read import detect_form, read_questions
from refrag.data.questions.row import QuestionRow
from refrag.errors import InvalidRequest
from refrag.evaluation.models import Models, load_models
from refrag.evaluation.questions.answers_file import AnswersFile
from refrag.evaluation.questions.conditions import parse_conditions
from refrag.evaluation.questions.execution import Execution
from refrag.evaluation.questions.identity import Inputs, identify
from refrag.evaluation.questions.options import QuestionOptions
from refrag.evaluation.questions.part import Part, answers_path, find_parts
from refrag.evaluation.questions.run import QuestionRun
from refrag.evaluation.questions.summary import summarise
from refrag.machine.environment import describe_environment
from refrag.retrieval.bm25 import WEAK_POOL


def evaluate_questions(
    inputs: Inputs,
    conditions: Sequence[str],
    options: QuestionOptions,
    output: Path,
    execution: Execution | None = None,
) -> dict[str, Any]:
    """Return the report, which is written to `output` too; answers go to a file beside it, where a next run goes on.

    What parts have answered before is taken over.

    execution: None for the default, a GPU where there is one.
    """
    execution = execution or Execution()
    run, file = _open(inputs, conditions, options, execution, answers_path(output))
    for path in find_parts(output):
        file.take_over(path)
    run.answer_all(file, execution.rows_at_once)
    report = {**_describe(inputs, run.models, options), **execution.describe(), **summarise(run, file)}
    output.write_text(json.dumps(report, indent=2) + "\n")
    return report


def answer_part(
    inputs: Inputs, conditions: Sequence[str], options: QuestionOptions, output: Path, execution: Execution, part: Part
) -> Path:
    """Answer a part of the rows, which an evaluation with the same output then takes over; return their file."""
    run, file = _open(inputs, conditions, options, execution, answers_path(output, part))
    run.answer_all(file, execution.rows_at_once, part)
    return file.path


def read_rows(inputs: Inputs, options: QuestionOptions) -> list[QuestionRow]:
    """Return the rows in an order that the seed draws, so that an unfinished run has asked a fair sample.

    Raises InvalidRequest, before anything is searched, if fewer passages were searched for than are to be read.
    """
    needed = max(options.num_passages, WEAK_POOL if options.strength == "weak" else 0)
    if options.depth < needed and (inputs.form or detect_form(inputs.data)) != "rows":
        raise InvalidRequest(
            f"depth is {options.depth}, but num_passages {options.num_passages} with a {options.strength} retriever "
            f"takes the best {needed} passages; set depth to at least {needed}"
        )
    return read_questions(
        inputs.data,
        inputs.form,
        inputs.passages,
        num_rows=options.num_rows or sys.maxsize,
        seed=options.seed,
        depth=options.depth,
        split=inputs.split,
    )


def _open(
    inputs: Inputs, conditions: Sequence[str], options: QuestionOptions, execution: Execution, answers: Path
) -> tuple[QuestionRun, AnswersFile]:
    rows = read_rows(inputs, options)
    models = load_models(inputs.checkpoint, inputs.plain)
    models.move_to(execution.torch_device)
    models.cast_decoders(getattr(torch, options.dtype))
    run = QuestionRun(models, rows, parse_conditions(conditions, models.checkpoint.config.chunk_size), options)
    return run, AnswersFile(answers, identify(inputs, options))


def _describe(inputs: Inputs, models: Models, options: QuestionOptions) -> dict[str, Any]:
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        **describe_environment(),
        "plain_name": models.plain_name,
        "data": inputs.data.name,
        "seed": options.seed,
        "options": {**options.identity(), "num_rows": options.num_rows},
    }
