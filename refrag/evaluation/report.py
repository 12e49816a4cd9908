"""An evaluation as a Markdown table: one row for each condition, one column for each number of passages."""

import argparse
import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def markdown_table(report: dict[str, Any]) -> str:
    """Exact match in percent with its 95% interval, and the prompt slots at the largest number of passages."""
    results: list[Row] = report["results"]
    columns = sorted({row["num_passages"] for row in results})
    tokens = {row["num_passages"]: row["mean_context_tokens"] for row in results}
    head = ["exact match, %", *(_heading(count, tokens[count]) for count in columns), "prompt slots"]
    lines = [head, ["---", *["---:"] * (len(columns) + 1)]]
    for name in dict.fromkeys(row["condition"]["name"] for row in results):
        by_column = {row["num_passages"]: row for row in results if row["condition"]["name"] == name}
        cells = [_cell(by_column[count]) for count in columns]
        lines.append([name, *cells, f"{by_column[columns[-1]]['mean_prompt_slots']:.0f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _heading(num_passages: int, tokens: float) -> str:
    noun = "passage" if num_passages == 1 else "passages"
    return f"{num_passages} {noun}, {tokens:.0f} tokens"


def _cell(row: Row) -> str:
    if row["condition"]["expand_fraction"] > 0 and row["mean_expanded_chunks"] < 1:
        return "–"  # too few chunks for the budget to reach one: the same as all compressed
    low, high = row["interval_95"]
    return f"{100 * row['exact_match']:.1f} ({100 * low:.0f}–{100 * high:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("evaluation", type=Path, help="JSON file written by refrag.evaluation.exact_match")
    print(markdown_table(json.loads(parser.parse_args().evaluation.read_text())))


if __name__ == "__main__":
    main()
