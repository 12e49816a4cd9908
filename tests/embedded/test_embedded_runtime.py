import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from refrag.embedded.run import ServerRun
from refrag.embedded.runtime import Wheel, assemble_runtime, build_environment
from refrag.embedded.settings import ServerSettings

STUB = "backends/python/triton_python_backend_stub"


@pytest.fixture
def wheel(tmp_path) -> Wheel:
    root = tmp_path / "site-packages" / "pytriton" / "tritonserver"
    for name in (
        "backends/python/libtriton_python.so",
        "backends/python/triton_python_backend_utils.py",
        "python_backend_stubs/3.9/triton_python_backend_stub",
        "python_backend_stubs/3.11/triton_python_backend_stub",
        "caches/local/libtritoncache_local.so",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return Wheel("0.7.0", root, tmp_path / "site-packages" / "nvidia_pytriton.libs")


def list_tree(directory: Path) -> dict[str, str]:
    files = [path for path in Path(directory).rglob("*") if path.is_file()]
    files += [path for link in directory.glob("*/*") if link.is_symlink() for path in link.iterdir() if path.is_file()]
    return {str(path.relative_to(directory)): path.read_text() for path in files if "__pycache__" not in path.parts}


def test_the_tree_holds_both_backends_and_the_cache(wheel, tmp_path):
    assemble_runtime(wheel, tmp_path / "rt", (3, 11))
    assert set(list_tree(tmp_path / "rt")) == {
        "backends/python/libtriton_python.so",
        "backends/python/triton_python_backend_utils.py",
        STUB,
        "backends/onnxruntime/model.py",
        "caches/local/libtritoncache_local.so",
    }


def test_the_stub_is_the_running_pythons_and_executable(wheel, tmp_path):
    assemble_runtime(wheel, tmp_path / "rt", (3, 11))
    assert (tmp_path / "rt" / STUB).read_text() == "python_backend_stubs/3.11/triton_python_backend_stub"
    assert os.access(tmp_path / "rt" / STUB, os.X_OK)


def test_the_python_backends_library_is_no_link(wheel, tmp_path):
    assemble_runtime(wheel, tmp_path / "rt", (3, 11))
    assert not (tmp_path / "rt/backends/python/libtriton_python.so").is_symlink()


def test_assembling_twice_changes_nothing(wheel, tmp_path):
    assemble_runtime(wheel, tmp_path / "rt", (3, 11))
    once = list_tree(tmp_path / "rt")
    assemble_runtime(wheel, tmp_path / "rt", (3, 11))
    assert list_tree(tmp_path / "rt") == once


def test_runtimes_assembled_at_the_same_time_are_all_whole(wheel, tmp_path):
    directories = [tmp_path / f"rt{number}" for number in range(8)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda directory: assemble_runtime(wheel, directory, (3, 11)), directories))
    first, *others = map(list_tree, directories)
    assert len(first) == 5
    assert all(other == first for other in others)


def test_stub_versions_are_sorted_as_numbers(wheel):
    assert wheel.stub_versions == ("3.9", "3.11")


def test_the_environment_puts_ours_first_and_lets_the_caller_decide(wheel):
    environment = build_environment(wheel, {"PATH": "/bin", "A": "base"}, {"A": "caller", "HF_HUB_OFFLINE": "0"})
    assert environment["PATH"].endswith(":/bin")
    assert environment["LD_LIBRARY_PATH"].startswith(str(wheel.libraries))
    assert (environment["A"], environment["HF_HUB_OFFLINE"]) == ("caller", "0")


def test_model_processes_stay_offline_unless_told_otherwise(wheel):
    assert build_environment(wheel, {"HF_HUB_OFFLINE": "0"}, {})["HF_HUB_OFFLINE"] == "1"


def test_a_log_that_cannot_be_read_back_tells_nothing_and_fails_nothing(wheel, tmp_path):
    """As /dev/stdout in a container, which is a pipe."""
    pipe = tmp_path / "log"
    os.mkfifo(pipe)
    run = ServerRun(wheel, ServerSettings(log_path=pipe), pipe)
    assert str(pipe) in run.explain("the server ended")
