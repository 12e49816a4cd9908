"""Every command and script of the documentation is run by a test, or says what it needs that tests do not have."""

import re

import pytest
import yaml
from documentation import PAGES, ROOT, command_blocks, make_checkout, pages_run_by, run_block

HERE = "tests/docs/test_docs_commands.py"
WITH_A_SERVER = "tests/graph/test_graph_docs.py"
WITH_COLLECTIONS = "tests/graph/test_graph_retrieval.py"
NEEDS = {
    "gpu": "an NVIDIA GPU",
    "hours": "training or evaluating for hours",
    "an idle machine": "minutes in which nothing else runs, or its figures mean nothing",
    "packages": "installing packages, and models that are downloaded",
    "root": "installing packages of the system",
    "nginx": "a proxy of the system",
    "network": "a package registry, and gigabytes from it",
    "aiperf": "a tool that has an environment of its own",
}
# Tiny, and one step: other tests check that training learns.
PRESET = "refrag/training/presets/tiny.yaml"


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_who_runs_it_or_what_it_needs(page):
    for block in command_blocks(page):
        needs = block.marker.removeprefix("needs: ") if block.marker.startswith("needs: ") else None
        assert block.runner or needs in NEEDS, f"{page}: nothing runs, and no known need excuses:\n{block.code}"


@pytest.mark.parametrize("page", PAGES)
def test_whoever_is_said_to_run_a_block_does(page):
    for block in command_blocks(page):
        if block.runner and block.runner not in (HERE, WITH_A_SERVER, WITH_COLLECTIONS):
            assert all(command in what_runs(block.runner) for command in block.commands), block


def what_runs(runner):
    """Return the lines of a script; for a test, the make targets whose recipe runs it."""
    text = (ROOT / runner).read_text()
    recipes = re.findall(r"^([a-z0-9-]+):.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return [line.strip() for line in text.splitlines()] + [f"make {name}" for name, lines in recipes if runner in lines]


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_run_by(HERE))
def test_the_commands_of_a_page_run_one_after_another(page, tmp_path):
    checkout = make_checkout(tmp_path)
    write_preset(checkout / "my-preset.yaml")
    for block in command_blocks(page, HERE):
        printed = run_block(block, with_free_ports(block.code), checkout)
        assert "parrot" in printed or "Mara Tolen" not in block.code


def write_preset(path):
    preset = yaml.safe_load((ROOT / PRESET).read_text())
    run = {**preset["runs"]["reconstruct"], "start": None}
    run["optimisation"]["num_steps"] = 1
    path.write_text(yaml.safe_dump({**preset, "runs": {"reconstruct": run}, "result": "reconstruct"}))


def with_free_ports(code):
    return code.replace("refrag check", "refrag check --http-port 0 --grpc-port 0 --metrics-port 0")
