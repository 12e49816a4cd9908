"""The Makefile: what is served is what was named, and nothing is exported twice."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECOND_NS = 10**9
# Notes what it is asked to do, and leaves of an export the files that the Makefile looks at.
PROGRAM = """#!/bin/sh
echo "$1 $3" >> called.txt
[ "$1" != export ] || mkdir -p "$5/decoder/1/checkpoint" "$5/refrag_rag"
[ "$1" != export ] || touch "$5/decoder/1/checkpoint/refrag.json"
[ "$1" != export ] || realpath "$3" > "$5/decoder/1/checkpoint/exported_from"
[ "$6" != --retrieval ] || touch "$5/refrag_rag/config.pbtxt"
"""


@pytest.fixture
def make(tmp_path):
    """Runs make in a checkout whose programs only note their calls, and returns those of `refrag export`."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("smollm2", "world"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "refrag.json").touch()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("refrag", "python"):
        (tmp_path / ".venv" / "bin" / name).write_text(PROGRAM)
        (tmp_path / ".venv" / "bin" / name).chmod(0o755)
    called = tmp_path / "called.txt"

    def make(*arguments: str) -> list[str]:
        _age(tmp_path)
        called.write_text("")
        subprocess.run(
            ["make", "--old-file=.venv/.installed", *arguments],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"]},
            check=True,
        )
        return [line.split()[1] for line in called.read_text().splitlines() if line.startswith("export")]

    return make


def export_by_hand(folder, name):
    """Do what the README's own command does: refrag export --checkpoint … --repository model_repository."""
    command = [".venv/bin/refrag", "export", "--checkpoint", f"checkpoints/{name}", "--repository", "model_repository"]
    subprocess.run(command, cwd=folder, check=True)


def _age(folder: Path) -> None:
    """Make all files a second older, so that what comes next is newer whatever the file system's clock tells apart."""
    for path in folder.rglob("*"):
        times = path.stat()
        os.utime(path, ns=(times.st_atime_ns - SECOND_NS, times.st_mtime_ns - SECOND_NS))


def test_a_checkpoint_is_exported_once_and_again_when_another_is_named(make):
    assert make("demo") == ["checkpoints/smollm2"]
    assert make("serve") == []
    assert make("serve", "CHECKPOINT=checkpoints/world") == ["checkpoints/world"]
    assert make("serve", "CHECKPOINT=checkpoints/world") == []
    assert make("serve") == ["checkpoints/smollm2"]


def test_what_make_export_has_exported_is_served_as_it_is(make):
    assert make("export", "CHECKPOINT=checkpoints/world") == ["checkpoints/world"]
    assert make("serve", "CHECKPOINT=checkpoints/world") == []


def test_each_repository_has_a_checkpoint_of_its_own(make):
    make("serve")
    assert make("serve", "CHECKPOINT=checkpoints/world", "REPOSITORY=build/other") == ["checkpoints/world"]
    assert make("serve") == []


def test_an_export_with_collections_is_the_only_one(make):
    assert make("play") == ["checkpoints/smollm2"]
    assert make("play") == make("serve") == []
    assert make("play", "CHECKPOINT=checkpoints/world") == ["checkpoints/world"]


def test_an_export_by_hand_stays_with_its_options(make, tmp_path):
    export_by_hand(tmp_path, "smollm2")
    assert make("serve") == []


def test_an_export_by_hand_of_another_checkpoint_gives_way(make, tmp_path):
    make("serve")
    export_by_hand(tmp_path, "world")
    assert make("serve", "CHECKPOINT=checkpoints/world") == []
    assert make("serve") == ["checkpoints/smollm2"]


def test_an_export_with_collections_of_another_checkpoint_gives_way(make, tmp_path):
    make("play")
    export_by_hand(tmp_path, "world")
    assert make("play") == ["checkpoints/smollm2"]
