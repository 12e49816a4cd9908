"""The environment of a decoder is made once, goes on where it stopped, and is refused where it does not fit."""

import json
import sys

import pytest

from refrag.decoders import install as making
from refrag.decoders.install import find_recipe, install, server_environment
from refrag.errors import InvalidRequest, SetupError


@pytest.fixture
def commands(monkeypatch):
    """Commands that were run, in the place of running them; a name in `failing` fails."""
    done, failing = [], []

    def run(command):
        if any(word in " ".join(command) for word in failing):
            raise SetupError(f"`{' '.join(command)}` failed")
        done.append(command)
        if command[1:3] == ["-m", "venv"]:
            version = f"python{sys.version_info.major}.{sys.version_info.minor}"
            folder = making.Path(command[3])
            (folder / "lib" / version / "site-packages").mkdir(parents=True)
            (folder / "bin").mkdir(exist_ok=True)
            (folder / "bin" / "python").touch()

    monkeypatch.setattr(making, "_run", run)
    return done, failing


def test_an_environment_has_numpy_1_last_and_this_package(commands, tmp_path):
    done, _ = commands
    assert install("vllm", tmp_path / "env", "cpu")
    [packages] = server_environment(tmp_path / "env").glob("lib/python3*/site-packages")
    assert (packages / "refrag").resolve() == making.PACKAGE
    assert ["numpy==1.26.4" in command for command in done] == [False, False, True]
    assert "--no-deps" in done[1]


def test_a_cuda_builds_dependencies_are_left_to_pip(commands, tmp_path):
    done, _ = commands
    install("vllm", tmp_path / "env", "cuda")
    assert "--no-deps" not in done[1]
    assert done[1][-1].endswith("vllm-cuda.txt")


def test_a_second_run_does_nothing(commands, tmp_path):
    done, _ = commands
    install("vllm", tmp_path / "env", "cpu")
    count = len(done)
    assert not install("vllm", tmp_path / "env", "cpu")
    assert len(done) == count


def test_a_run_that_was_interrupted_is_gone_on_with(commands, tmp_path):
    done, failing = commands
    failing.append("numpy==")
    with pytest.raises(SetupError, match="numpy"):
        install("vllm", tmp_path / "env", "cpu")
    with pytest.raises(SetupError, match="no finished environment"):
        server_environment(tmp_path / "env")
    failing.clear()
    assert install("vllm", tmp_path / "env", "cpu")
    assert sum("venv" in command for command in done) == 1
    assert server_environment(tmp_path / "env").is_dir()


def test_a_run_that_was_interrupted_before_pip_was_there_is_gone_on_with(commands, tmp_path):
    done, failing = commands
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "bin" / "python").touch()
    failing.append("venv")
    with pytest.raises(SetupError, match="venv"):
        install("vllm", tmp_path / "env", "cpu")
    failing.clear()
    assert install("vllm", tmp_path / "env", "cpu")
    assert [command[2] for command in done] == ["venv", "pip", "pip"]


def test_other_requirements_make_it_again(commands, tmp_path):
    install("vllm", tmp_path / "env", "cpu")
    assert install("vllm", tmp_path / "env", "cuda")


def test_one_for_another_python_is_refused(commands, tmp_path):
    install("vllm", tmp_path / "env", "cpu")
    made = tmp_path / "env" / "made.json"
    made.write_text(json.dumps({**json.loads(made.read_text()), "python": "3.9"}))
    with pytest.raises(SetupError, match=r"was made for Python 3.9"):
        server_environment(tmp_path / "env")


def test_too_little_space_is_told_before_anything_is_downloaded(commands, tmp_path, monkeypatch):
    monkeypatch.setattr(making.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**30})())
    with pytest.raises(SetupError, match=r"1\.0 GiB free, and the environment needs about 4 GiB"):
        install("vllm", tmp_path / "env", "cpu")
    assert commands[0] == []


def test_a_failing_command_is_named_with_its_exit_code():
    with pytest.raises(SetupError, match="failed with exit code 3"):
        making._run([sys.executable, "-c", "raise SystemExit(3)"])


def test_a_decoder_that_needs_no_environment_is_refused():
    with pytest.raises(InvalidRequest, match="'torch' has no environment of its own to install"):
        find_recipe("torch")


def test_every_requirement_is_pinned():
    for recipe in making.RECIPES.values():
        for name in recipe.files.values():
            lines = (making.REQUIREMENTS / name).read_text().splitlines()
            wanted = [line for line in lines if line and not line.startswith("#")]
            assert wanted
            assert all("==" in line for line in wanted)
