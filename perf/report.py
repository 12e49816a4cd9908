"""Turns result files into one page, as Markdown or as self-contained HTML, and compares two result files.

    python -m perf.report page perf/results --output build/perf/report.html      or .md
    python -m perf.report compare before/ttft.json after/ttft.json

A folder's page has a section for each benchmark whose result file is there. Every plot shows its baseline.
"""

import argparse
import base64
import html
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import markdown as markdown_library

from perf import (
    accuracy_report,
    engine,
    gpu_report,
    leaving,
    load,
    openai,
    peers,
    plots,
    prefill,
    retrieval,
    scale,
    sizing,
    store,
    ttft,
)
from perf.results import Report
from refrag.reporting import table

# Keys by which the entries of a list are told apart.
IDENTITY = (
    "context_tokens",
    "chunk_size",
    "encoder",
    "store",
    "expand_fraction",
    "load",
    "passages",
    "callers",
    "concurrency",
    "batch",
    "tier",
    "computed_share",
    "way",
    "model",
    "mode",
    "is_stream",
    "num_passages",
    "policy",
    "pair",
    "slots",
    "condition",
    "against",
)
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c1e21 }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.85rem }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #d9dce0 }
th { text-align: left; vertical-align: bottom }
img { width: 100% }
code { background: #f2f3f5; padding: 0 0.2rem }
"""


@dataclass(frozen=True)
class Section:
    """A benchmark's section of the page: how its result file is shown."""

    name: str
    title: str
    text: Callable[[Report], str]
    figures: tuple[Callable[[Report], Any], ...] = ()


SECTIONS = (
    Section(
        "ttft", "Time to first token through the served graph", ttft.markdown, (plots.ttft, plots.speedup, plots.stages)
    ),
    Section("load", "Many callers at once", load.markdown, (plots.throughput, plots.latency)),
    Section("peers", "Beside Hugging Face's generate", peers.markdown, (plots.peers,)),
    Section("scale", "Idle cost and growth", scale.markdown, (plots.passages, plots.callers)),
    Section("prefill", "The decoder in process", prefill.markdown, (plots.prefill,)),
    Section("gpu", "The paper's geometry on a GPU", gpu_report.prefill_table),
    Section("engine", "The engine against other ways to run the decoder", engine.render, (plots.engine,)),
    Section("leaving", "Callers who leave", leaving.markdown),
    Section("openai", "OpenAI's endpoint against gRPC", openai.markdown),
    Section("accuracy", "Accuracy at equal latency", accuracy_report.markdown),
    Section("retrieval", "Collections", retrieval.markdown),
    Section("store", "The store of chunk vectors", store.markdown),
    Section("sizing", "How large a store is", sizing.markdown),
)


def markdown_page(folder: Path) -> str:
    """Return the page in Markdown: tables only."""
    parts = [f"## {section.title}\n\n{section.text(report)}" for section, report in read_results(folder)]
    return "\n\n".join(["# REFRAG: performance", *parts]) + "\n"


def html_page(folder: Path) -> str:
    """Return the page in HTML: in each section plots, then the tables that they are drawn from."""
    parts = []
    for section, report in read_results(folder):
        images = "".join(
            f'<img alt="{html.escape(section.title)}" src="{_data_url(draw(report))}">' for draw in section.figures
        )
        text = markdown_library.markdown(section.text(report), extensions=["tables"])
        parts.append(f"<h2>{html.escape(section.title)}</h2>\n{images}\n{text}")
    title = "REFRAG: performance"
    head = f'<head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head>'
    return f'<!doctype html>\n<html lang="en">{head}<body><h1>{title}</h1>\n{chr(10).join(parts)}\n</body></html>\n'


def read_results(folder: Path) -> Iterator[tuple[Section, Report]]:
    for section in SECTIONS:
        path = folder / f"{section.name}.json"
        if path.exists():
            yield section, json.loads(path.read_text())


def compare(before: Report, after: Report) -> str:
    """Return a table of every number that both reports have, with the ratio of second to first."""
    first, second = by_name(before), by_name(after)
    rows = [
        [name, f"{first[name]:g}", f"{second[name]:g}", f"{second[name] / first[name]:.2f}×" if first[name] else ""]
        for name in first
        if name in second
    ]
    about = [f"{report['commit']} on {report['machine']}" for report in (before, after)]
    return table(["what", *about, "second over first"], rows)


def by_name(report: Report) -> dict[str, float]:
    """Return each number of a report by its name; raise ValueError for two of one name, of which one would be lost."""
    numbers: dict[str, float] = {}
    for name, number in flatten(report):
        if name in numbers:
            raise ValueError(f"two numbers are named {name!r}; add the key that tells their entries apart to IDENTITY")
        numbers[name] = number
    return numbers


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield each number of a report, with its place in the report as its name."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flatten(item, f"{name} {key}".strip())
    elif isinstance(value, list):
        for number, item in enumerate(value, start=1):
            yield from flatten(_measured(item), f"{name} ({_identify(item, number)})")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, float(value)


def _measured(item: Any) -> Any:
    """Return an entry of a list without what its name tells."""
    if not isinstance(item, dict):
        return item
    return {key: each for key, each in item.items() if key not in IDENTITY or isinstance(each, (dict, list))}


def _identify(item: Any, number: int) -> str:
    """Return what tells an entry apart; a value alone, such as an end of a range, has its number in the list."""
    if not isinstance(item, dict):
        return str(number)
    return ", ".join(f"{key} {item[key]}" for key in IDENTITY if item.get(key) is not None)


def _data_url(figure: Any) -> str:
    image = io.BytesIO()
    figure.savefig(image, format="svg", bbox_inches="tight")
    return f"data:image/svg+xml;base64,{base64.b64encode(image.getvalue()).decode()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    page = commands.add_parser("page", help="one page of a folder's results")
    page.add_argument("folder", type=Path)
    page.add_argument("--output", type=Path, required=True, help="a name that ends in .html or .md")
    comparison = commands.add_parser("compare", help="two results of one benchmark")
    comparison.add_argument("before", type=Path)
    comparison.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.command == "compare":
        print(compare(*(json.loads(path.read_text()) for path in (options.before, options.after))))
        return
    if options.output.suffix not in (".html", ".md"):
        parser.error(f"--output is {options.output}; its name must end in .html or .md")
    text = html_page(options.folder) if options.output.suffix == ".html" else markdown_page(options.folder)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text)
    print(f"{options.output}: {len(text):,} bytes")


if __name__ == "__main__":
    main()
