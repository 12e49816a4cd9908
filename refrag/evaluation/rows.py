"""Rows of the tables as plain values for JSON: estimates with their intervals, and paired differences."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from refrag.data.tasks import Task
from refrag.evaluation.answers import Answers
from refrag.evaluation.statistics import estimate_difference, estimate_mean, estimate_share, estimate_share_difference

Row = dict[str, Any]
Metric = Literal["exact_match", "log_perplexity"]
METRICS: tuple[Metric, ...] = ("exact_match", "log_perplexity")


@dataclass(frozen=True)
class Table:
    """about: what was measured, in one sentence."""

    about: str
    rows: list[Row] = field(default_factory=list)
    differences: list[Row] = field(default_factory=list)


def answer_row(answers: Answers, seed: int, setting: Mapping[str, Any] | None = None) -> Row:
    """`setting`: what sets this row apart from others of the same condition."""
    return {
        "name": answers.name,
        **(setting or {}),
        "condition": asdict(answers.condition),
        "num_questions": len(answers.tasks),
        "exact_match": asdict(estimate_share(answers.is_right)),
        "exact_match_by_task": {
            task: asdict(estimate_share(answers.is_right[answers.tasks == task]))
            for task in dict.fromkeys(answers.tasks.tolist())
        },
        "log_perplexity": asdict(estimate_mean(answers.log_perplexity, seed)),
        **{metric: _mean(values) for metric, values in answers.text_metrics.items()},
        "prompt_slots": _mean(answers.prompt_slots),
        "expanded_chunks": _mean(answers.expanded_chunks),
        "context_tokens": _mean(answers.context_tokens),
    }


def answer_difference(
    answers: Answers, others: Answers, metric: Metric, seed: int, tasks: Sequence[Task] | None = None
) -> Row:
    """The metric of `answers` minus that of `others`, on the same questions, all of them or those of some tasks."""
    chosen = np.full(len(answers.tasks), True) if tasks is None else np.isin(answers.tasks, tasks)
    values, other_values = answers.metric(metric)[chosen], others.metric(metric)[chosen]
    if metric == "exact_match":
        difference = estimate_share_difference(values, other_values)
    else:
        difference = estimate_difference(values, other_values, seed)
    row = {"name": answers.name, "against": others.name, "metric": metric, "difference": asdict(difference)}
    return row if tasks is None else {**row, "tasks": list(tasks)}


def perplexity_row(name: str, means: Mapping[str, np.ndarray], seed: int) -> Row:
    """`means`: of each window, by how many of its first tokens they are over."""
    return {
        "name": name,
        "num_windows": len(means["all"]),
        "log_perplexity": {tokens: asdict(estimate_mean(values, seed)) for tokens, values in means.items()},
    }


def perplexity_difference(
    name: str, means: Mapping[str, np.ndarray], other_name: str, others: Mapping[str, np.ndarray], seed: int
) -> Row:
    """The means of `name` minus those of `other_name`, over the same windows."""
    differences = {
        tokens: asdict(estimate_difference(values, others[tokens], seed)) for tokens, values in means.items()
    }
    return {"name": name, "against": other_name, "metric": "log_perplexity", "difference": differences}


def _mean(values: np.ndarray) -> float:
    return round(float(values.mean()), 4)
