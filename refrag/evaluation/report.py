"""The results of an evaluation: a JSON file that is complete after every table, and the same as Markdown.

    refrag evaluate report evaluation.json

Each study is one table, with the paired differences behind it.
"""

import json
import sys
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from refrag.machine.environment import describe_environment
from refrag.reporting import table

Values = Mapping[str, Any]
Row = dict[str, Any]

TEXT_METRICS = {"f1": "F1, %", "rouge_l": "ROUGE-L, %"}


@dataclass(frozen=True)
class Table:
    """The rows of one study, and their paired differences; `about` says what was measured."""

    about: str
    rows: list[Row] = field(default_factory=list)
    differences: list[Row] = field(default_factory=list)


class Report:
    """The tables made so far, written to a file after each; `values` is what `render` takes."""

    def __init__(self, seed: int, output: Path | None) -> None:
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        self.values: dict[str, Any] = {"command": command, **describe_environment(), "seed": seed, "tables": {}}
        self.output = output
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, make: Callable[[], Table]) -> None:
        """Make a table, add it, and write the whole file again."""
        start = time.perf_counter()
        table = make()
        self.values["tables"][name] = {**asdict(table), "seconds": round(time.perf_counter() - start, 1)}
        if self.output is not None:
            self.output.write_text(json.dumps(self.values, indent=2) + "\n")


def render(report: Values) -> str:
    """Return every table of the report with its heading and its differences."""
    return "\n\n".join(_sections(report))


def markdown_table(report: Values, table_name: str) -> str:
    """Return the rows of one table: exact match in percent, or log-perplexity, with their 95% intervals."""
    rows = report["tables"][table_name]["rows"]
    return _answer_table(rows) if "exact_match" in rows[0] else _perplexity_table(rows)


def markdown_tasks(report: Values, table_name: str, names: Container[str] | None = None) -> str:
    """Return the exact match by task of one table's rows, or only of the rows with these names."""
    rows = [row for row in report["tables"][table_name]["rows"] if names is None or row["name"] in names]
    tasks = list(rows[0]["exact_match_by_task"])
    lines = [[row["name"], *(_percent(row["exact_match_by_task"][task]) for task in tasks)] for row in rows]
    return table(["exact match, %", *tasks], lines)


def markdown_differences(report: Values, table_name: str) -> str:
    """Return the paired differences of one table, those that exclude zero in bold."""
    lines = []
    for row in report["tables"][table_name]["differences"]:
        for measure, estimate in _differences(row):
            show = _percent if measure.startswith("exact match") else _decimal
            cell = show(estimate)
            cell = f"**{cell}**" if estimate["low"] > 0 or estimate["high"] < 0 else cell
            lines.append([row["name"], row["against"], measure, cell])
    return table(["condition", "against", "measure", "difference"], lines, num_text=3)


def _sections(report: Values) -> Iterator[str]:
    yield f"`{report['command']}` at {report['commit']} on {report['machine']}, seed {report['seed']}"
    for name, study in report["tables"].items():
        yield f"## {name}\n\n{study['about']}\n\n{markdown_table(report, name)}"
        if "exact_match_by_task" in study["rows"][0]:
            yield markdown_tasks(report, name)
        if study["differences"]:
            yield markdown_differences(report, name)


def _answer_table(rows: Sequence[Values]) -> str:
    texts = [metric for metric in TEXT_METRICS if metric in rows[0]]
    head = ["condition", "exact match, %", *(TEXT_METRICS[metric] for metric in texts), "log-perplexity"]
    head += ["prompt slots", "expanded chunks", "context tokens"]
    lines = [
        [
            row["name"],
            _percent(row["exact_match"]),
            *(f"{100 * row[metric]:.1f}" for metric in texts),
            _decimal(row["log_perplexity"]),
            f"{row['prompt_slots']:.0f}",
            f"{row['expanded_chunks']:.1f}",
            f"{row['context_tokens']:.0f}",
        ]
        for row in rows
    ]
    return table(head, lines)


def _perplexity_table(rows: Sequence[Values]) -> str:
    counts = list(rows[0]["log_perplexity"])
    lines = [[row["name"], *(_decimal(row["log_perplexity"][count]) for count in counts)] for row in rows]
    return table(["log-perplexity", *map(_tokens, counts)], lines)


def _differences(row: Values) -> Iterator[tuple[str, Values]]:
    """Yield each measure of a row with the estimate of its difference; perplexities have one for each span."""
    measure = row["metric"].replace("_", "-" if row["metric"] == "log_perplexity" else " ")
    if "value" in row["difference"]:
        yield (f"{measure} on {', '.join(row['tasks'])}" if "tasks" in row else measure), row["difference"]
    else:
        for count, estimate in row["difference"].items():
            yield f"{measure}, {_tokens(count)}", estimate


def _tokens(count: str) -> str:
    return "all tokens" if count == "all" else f"first {count} tokens"


def _percent(estimate: Values) -> str:
    return f"{100 * estimate['value']:.1f} ({100 * estimate['low']:.1f} to {100 * estimate['high']:.1f})"


def _decimal(estimate: Values) -> str:
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"
