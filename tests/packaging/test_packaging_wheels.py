"""The two wheels in an environment of their own, outside the checkout: export, serve, ask."""

import re
import shutil
import signal
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = [pytest.mark.server, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
# An export's results lie in model_repository, so that they are there to be left out.
NOT_SOURCES = (".*", "build", "runs", "checkpoints", "results", "*.egg-info", "__pycache__")
BUILT_IN_VERSION = re.compile(r"model_repository/[^/]+/1/(?!model\.py$|\.gitkeep$)")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> list[Path]:
    """Built from a copy: setuptools would find what an earlier build left in the checkout."""
    folder = tmp_path_factory.mktemp("wheels")
    ignored = shutil.ignore_patterns(*NOT_SOURCES)
    shutil.copytree(ROOT, folder / "sources", symlinks=True, ignore=ignored)
    for template in (ROOT / "model_repository").glob("*/1/.gitkeep"):
        shutil.copy(template, folder / "sources" / template.relative_to(ROOT))
    pip("wheel", "--no-deps", "--wheel-dir", folder, folder / "sources", folder / "sources" / "client")
    return sorted(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheels, tmp_path_factory) -> Path:
    """Return the folder of the programs of a new environment with the `server` extra."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    library, client = wheels
    requirements = [f"{library}[server]", client]
    # What is imported is compiled then; the rest of the files, a minute's work, is not.
    pip(
        "install",
        "--no-compile",
        "--constraint",
        ROOT / "constraints.txt",
        *requirements,
        python=folder / "bin" / "python",
    )
    return folder / "bin"


@pytest.fixture
def outside(tmp_path, monkeypatch) -> Path:
    """Make an empty folder to work in, with nothing of the checkout on Python's path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    shutil.copytree(ROOT / "checkpoints" / "world", tmp_path / "checkpoint")
    return tmp_path


def pip(*arguments: object, python: object = sys.executable) -> None:
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([str(python), "-m", "pip", str(arguments[0]), *quiet, *map(str, arguments[1:])], check=True)


def sources(*patterns: str, root: Path = ROOT) -> set[str]:
    return {path.relative_to(root).as_posix() for pattern in patterns for path in root.glob(pattern)}


@contextmanager
def served(environment: Path):
    """Start a server of the current folder's model_repository; yield its addresses by name."""
    options = [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
    # The processes of the server compile what they import, all at the same time.
    options.append("--ready-timeout-seconds=600")
    with subprocess.Popen([environment / "refrag", "serve", *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = [process.stdout.readline() for _ in range(5)]
            assert lines[-1].startswith("ready")
            yield dict(line.split(maxsplit=1) for line in lines[:4])
        finally:
            process.send_signal(signal.SIGTERM)


def test_the_wheels_hold_the_templates_and_nothing_that_was_built(wheels):
    library, client = (zipfile.ZipFile(wheel).namelist() for wheel in wheels)
    assert sources("refrag/**/*.py", "refrag/training/*/*.yaml", "refrag/py.typed") <= {*library}
    linked = sources("export/*.py", "model_repository/*/*.pbtxt", "model_repository/*/*/*.pbtxt")
    assert {f"refrag/{name}" for name in linked} <= {*library}
    assert {name.removeprefix("src/") for name in sources("src/**/*.py", "src/*/py.typed", root=ROOT / "client")} <= {
        *client
    }
    for names in (library, client):
        assert any(name.endswith("licenses/LICENSE") for name in names)
        assert not [name for name in names if BUILT_IN_VERSION.search(name) or Path(name).name.startswith("test")]


def test_an_answer_streams_from_what_was_installed(environment, outside):
    refrag = environment / "refrag"
    subprocess.run([refrag, "export", "--checkpoint", "checkpoint"], check=True)
    Path("passages.jsonl").write_text('"Mara Tolen keeps a parrot."\n{"text": "Odo Marsk plays the harp."}\n')
    with served(environment) as addresses:
        command = [refrag, "ask", "What does Mara Tolen keep?", "--passages", "passages.jsonl", "--compare"]
        done = subprocess.run([*command, "--url", addresses["grpc"].strip()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    compressed, plain = done.stdout.split("plain decoder:")
    assert re.search(r"compressed:\n.*\w", compressed)
    assert "parrot" in plain
    assert done.stderr.count("2 chunks") == 2
