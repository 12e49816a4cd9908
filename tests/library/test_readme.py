"""What the README quotes is what the result files say."""

import json
from pathlib import Path

import pytest

from perf import readme
from refrag.evaluation.report import render

ROOT = Path(__file__).parents[2]


def test_every_figure_is_its_result_files():
    """`make readme` brings it up to date."""
    text = readme.README.read_text()
    for name in (*readme.BLOCKS, "quickstart"):
        assert text.count(f"<!-- {name}:begin -->") == 1
    assert readme.render(text) == text


def test_a_block_that_is_not_there_is_missed():
    with pytest.raises(AssertionError, match="has 0 blocks demo"):
        readme.replace_block("no block", "demo", "")


@pytest.mark.parametrize("name", ["evaluation", "ablations"])
def test_the_tables_beside_the_checkpoint_are_their_result_file(name):
    path = ROOT / "checkpoints/demo" / name
    assert path.with_suffix(".md").read_text() == render(json.loads(path.with_suffix(".json").read_text())) + "\n"


def test_the_committed_checkpoint_is_small():
    size = sum(path.stat().st_size for path in (ROOT / "checkpoints").rglob("*") if path.is_file())
    assert size <= 24 * 2**20
