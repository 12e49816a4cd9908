"""What the README quotes is what the result files say."""

import functools
import json
from pathlib import Path

import pytest

from perf.engine import markdown_table as engine_table
from perf.store import markdown as store_results
from refrag.demo import markdown_table as demo_table
from refrag.evaluation.report import markdown_table as evaluation_table
from refrag.evaluation.report import markdown_tasks, render

ROOT = Path(__file__).parents[2]
TASK_ROWS = (
    "plain decoder, full context",
    "REFRAG k=16",
    "REFRAG k=16, 10% random",
    "REFRAG k=16, 10% learned",
    "REFRAG k=16, 10% oracle",
)
README = (ROOT / "README.md").read_text()


def section(name):
    return README.split(f"<!-- {name}:begin -->\n", 1)[1].split(f"\n<!-- {name}:end -->", 1)[0]


@pytest.mark.parametrize(
    "name, table, results",
    [
        ("demo", demo_table, "perf/results/demo.json"),
        ("answers", functools.partial(evaluation_table, table_name="answers"), "checkpoints/demo/evaluation.json"),
        ("store", store_results, "perf/results/store.json"),
        ("engine", functools.partial(engine_table, decoder="30m"), "perf/results/engine.json"),
        (
            "tasks",
            functools.partial(markdown_tasks, table_name="answers", names=TASK_ROWS),
            "checkpoints/demo/evaluation.json",
        ),
        (
            "reconstruction",
            functools.partial(evaluation_table, table_name="reconstruction, world"),
            "checkpoints/demo/ablations.json",
        ),
        (
            "continuation",
            functools.partial(evaluation_table, table_name="continuation, world"),
            "checkpoints/demo/ablations.json",
        ),
    ],
)
def test_a_quoted_table_is_its_result_file(name, table, results):
    assert table(json.loads((ROOT / results).read_text())) in section(name)


@pytest.mark.parametrize("name", ["evaluation", "ablations"])
def test_the_tables_beside_the_checkpoint_are_their_result_file(name):
    path = ROOT / "checkpoints/demo" / name
    assert path.with_suffix(".md").read_text() == render(json.loads(path.with_suffix(".json").read_text())) + "\n"


def test_the_quickstart_shows_what_the_demo_printed():
    transcript = (ROOT / "perf/results/demo.txt").read_text().splitlines()
    shown = [line for line in section("quickstart").splitlines() if line not in ("```", "…")]
    assert shown
    assert set(shown) <= set(transcript)
    result = json.loads((ROOT / "perf/results/demo.json").read_text())
    assert json.loads(shown[-1]).items() <= result.items()


def test_the_committed_checkpoint_is_small():
    size = sum(path.stat().st_size for path in (ROOT / "checkpoints").rglob("*") if path.is_file())
    assert size <= 24 * 2**20
