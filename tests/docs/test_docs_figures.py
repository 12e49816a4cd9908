"""The documentation quotes the result files and the source as they are; `make docs` brings it up to date."""

import json

import pytest
from documentation import ROOT

from perf import docs, source_map
from refrag.evaluation.report import render


@pytest.fixture(scope="module")
def blocks():
    return docs.draw_blocks()


def test_every_block_is_up_to_date(blocks):
    assert list(docs.stale_blocks(docs.read_pages(), blocks)) == []


def test_what_is_up_to_date_stays_as_it_is(blocks):
    assert docs.render(docs.read_pages(), blocks) == docs.read_pages()


def test_a_stale_block_is_named_with_its_page(blocks):
    page, other = docs.ROOT / "README.md", docs.ROOT / "docs/store.md"
    pages = {page: "<!-- demo:begin -->\nold\n<!-- demo:end -->", other: "<!-- store:begin -->new<!-- store:end -->"}
    assert list(docs.stale_blocks(pages, {"demo": "new"})) == ["block demo of README.md"]


def test_a_block_that_is_nowhere_or_in_two_places_is_refused():
    page = docs.ROOT / "README.md"
    twice = "<!-- demo:begin -->old<!-- demo:end -->" * 2
    with pytest.raises(docs.StaleBlock, match="demo is in 0 places"):
        docs.render({page: "no block"}, {"demo": ""})
    with pytest.raises(docs.StaleBlock, match="demo is in 2 places"):
        docs.render({page: twice}, {"demo": ""})


def test_every_marked_block_has_something_that_draws_it(blocks):
    marked = [line for text in docs.read_pages().values() for line in text.splitlines() if line.endswith(":begin -->")]
    assert sorted(marked) == sorted(f"<!-- {name}:begin -->" for name in blocks)


def test_the_drawing_leaves_out_what_follows_from_other_imports():
    imports = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert source_map.without_implied(imports) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_the_drawing_has_every_package():
    folders = {path.parent.name for path in (ROOT / "refrag").glob("*/__init__.py")}
    assert folders | {"refrag_client"} <= set(source_map.find_imports())


def test_packages_that_import_each_other_are_both_drawn():
    imports = {"a": {"b", "c"}, "b": {"c"}, "c": {"b"}}
    assert source_map.without_implied(imports)["a"] == {"b", "c"}


def test_the_file_map_names_every_package():
    files = source_map.list_files()
    for root in (ROOT / "refrag", ROOT / "export", ROOT / "client/src", ROOT / "perf", ROOT / "examples"):
        for package in root.rglob("__init__.py"):
            assert f"**`{package.parent.relative_to(ROOT)}/`**" in files


@pytest.mark.parametrize("name", ["evaluation", "ablations"])
def test_the_tables_beside_the_checkpoint_are_their_result_file(name):
    path = ROOT / "checkpoints/world" / name
    assert path.with_suffix(".md").read_text() == render(json.loads(path.with_suffix(".json").read_text())) + "\n"


def test_the_committed_checkpoints_are_small():
    size = sum(path.stat().st_size for path in (ROOT / "checkpoints").rglob("*") if path.is_file())
    assert size <= 30 * 10**6
