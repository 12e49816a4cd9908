"""The pages of the documentation, their fenced blocks, and a folder in which their commands can run."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "client/README.md")),
        *sorted((ROOT / "docs").glob("*.md")),
    )
]
COMMAND_LANGUAGES = ("bash", "sh", "console", "python")
BLOCK = re.compile(
    r"(?:<!-- (?P<marker>[^>]*) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A fenced block, and the comment right before it: `run: FILE` or `needs: THING`."""

    page: str
    language: str
    code: str
    marker: str

    @property
    def runner(self) -> str | None:
        """Return the name of the file that runs the block."""
        return self.marker.removeprefix("run: ") if self.marker.startswith("run: ") else None

    @property
    def commands(self) -> list[str]:
        """Return the block's lines without comments, with lines that a backslash continues joined."""
        lines = [line.partition(" #")[0].strip() for line in self.code.replace("\\\n", " ").splitlines()]
        return [line for line in lines if line]


def read_page(page: str) -> str:
    return (ROOT / page).read_text()


def command_blocks(page: str, runner: str | None = None) -> list[Block]:
    """Return the page's commands and scripts in order, or those that one file runs."""
    found = [
        Block(page, match["language"], match["code"], match["marker"] or "")
        for match in BLOCK.finditer(read_page(page))
        if match["language"] in COMMAND_LANGUAGES
    ]
    return [block for block in found if runner is None or block.runner == runner]


def pages_run_by(test_file: str) -> list[str]:
    return [page for page in PAGES if command_blocks(page, test_file)]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def make_checkout(folder: Path) -> Path:
    """Make a folder like a checkout, in which commands can write; files that they only read are links."""
    for name in ("Makefile", "client", "docs", "export", "perf", "examples", "refrag", "tests", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/world").symlink_to(ROOT / "checkpoints/world")
    shutil.copytree(
        ROOT / "model_repository",
        folder / "model_repository",
        ignore=shutil.ignore_patterns("model.onnx", "checkpoint", "__pycache__"),
    )
    return folder


def run_block(block: Block, code: str, folder: Path) -> str:
    """Run a block, which must succeed; return what it prints on both streams."""
    command = (
        [sys.executable, "-P", "-c", code] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", code]
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{block.page}:\n{code}\n{done.stdout}"
    return done.stdout
