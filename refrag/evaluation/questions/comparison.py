"""Compares two checkpoints on the same question set by their fidelity to the same plain decoder."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from refrag.evaluation.questions.answers_file import Answer
from refrag.evaluation.questions.summary import DECIMALS, FIDELITY
from refrag.evaluation.statistics import estimate_difference, estimate_mean
from refrag.reporting import table

Answers = Mapping[tuple[str, str], Answer]


def compare_fidelity(before: Answers, after: Answers, conditions: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Return for each condition and measure both means and their difference on the same rows, with 95% intervals.

    before, after: answers by row and condition, as an `AnswersFile` has them. Rows of a control say how many of its
    rows lend vectors of a passage that the question has too, and so control little.
    """
    rows = []
    for condition in conditions:
        shared = [key for key in before if key[1] == condition and key in after]
        sharing = [before[key]["num_shared_passages"] > 0 for key in shared if "num_shared_passages" in before[key]]
        for measure in FIDELITY:
            values = [np.array([answers[key][measure] for key in shared], float) for answers in (before, after)]
            rows.append(
                {
                    "condition": condition,
                    "measure": measure,
                    "num_rows": len(shared),
                    **({"num_sharing_controls": sum(sharing)} if sharing else {}),
                    "before": asdict(estimate_mean(values[0], seed)),
                    "after": asdict(estimate_mean(values[1], seed)),
                    "difference": asdict(estimate_difference(values[1], values[0], seed)),
                }
            )
    return rows


def render_comparison(report: Mapping[str, Any]) -> str:
    """Return a report with the comparison's rows as a Markdown table."""
    columns = ("before", "after", "difference")
    lines = [
        [_name(row), FIDELITY[row["measure"]], *(_figure(row[name], row["measure"]) for name in columns)]
        for row in report["rows"]
    ]
    return table(["condition", "measure", *columns], lines, num_text=2)


def _name(row: Mapping[str, Any]) -> str:
    count = row.get("num_sharing_controls", 0)
    return f"{row['condition']} ({count} of {row['num_rows']} share a passage)" if count else row["condition"]


def _figure(estimate: Mapping[str, float], measure: str) -> str:
    scale, digits = (1, 3) if measure in DECIMALS else (100, 1)
    value, low, high = (scale * estimate[name] for name in ("value", "low", "high"))
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
