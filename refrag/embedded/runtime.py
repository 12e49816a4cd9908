"""Puts together what tritonserver needs, a directory tree and an environment, from the wheel and our own backend.

    <runtime>/backends/python/       libtriton_python.so (a copy)   the wheel's
                                     triton_python_backend_stub     the wheel's, of the running Python's version
                                     triton_python_backend_utils.py the wheel's
    <runtime>/backends/onnxruntime/  model.py                       ours
    <runtime>/caches/local/          libtritoncache_local.so        the wheel's response cache

It is a few links and one small copy, so every server builds its own in a fresh directory: nothing is
shared, nothing goes stale, and two servers starting at once cannot meet.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

OWN_BACKENDS = Path(__file__).parent / "backends"


@dataclass(frozen=True)
class Wheel:
    """The installed nvidia-pytriton: where it lies and which release it is."""

    version: str
    root: Path
    libraries: Path

    @property
    def server_binary(self) -> Path:
        return self.root / "bin" / "tritonserver"

    @property
    def stub_versions(self) -> tuple[str, ...]:
        names = [folder.name for folder in (self.root / "python_backend_stubs").glob("3.*")]
        return tuple(sorted(names, key=lambda name: int(name.split(".")[1])))

    def find_stub(self, python_version: tuple[int, int]) -> Path:
        major, minor = python_version
        return self.root / "python_backend_stubs" / f"{major}.{minor}" / "triton_python_backend_stub"


def find_wheel() -> Wheel | None:
    """Return the wheel, located without importing it, or None if it is not installed."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        return None
    package = Path(spec.submodule_search_locations[0])
    version = importlib.metadata.version("nvidia-pytriton")
    return Wheel(version, package / "tritonserver", package.parent / "nvidia_pytriton.libs")


def assemble_runtime(wheel: Wheel, directory: Path, python_version: tuple[int, int] = sys.version_info[:2]) -> None:
    """Fill `directory` with the tree drawn above; doing it twice changes nothing."""
    python_backend = directory / "backends" / "python"
    python_backend.mkdir(parents=True, exist_ok=True)
    (directory / "caches").mkdir(exist_ok=True)
    # The server resolves links before it checks that a Python-based backend's library lies inside the
    # backend directory, and refuses one that does not.
    shutil.copyfile(wheel.root / "backends/python/libtriton_python.so", python_backend / "libtriton_python.so")
    utilities = "triton_python_backend_utils.py"
    _link(wheel.root / "backends/python" / utilities, python_backend / utilities)
    _place_stub(wheel.find_stub(python_version), python_backend / "triton_python_backend_stub")
    for backend in OWN_BACKENDS.iterdir():
        _link(backend, directory / "backends" / backend.name)
    _link(wheel.root / "caches/local", directory / "caches" / "local")


def build_environment(wheel: Wheel, base: Mapping[str, str], overrides: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the server and its stubs: `base`, then what they need, then `overrides`.

    PATH and LD_LIBRARY_PATH keep their entries, after those that the server needs.
    """
    environment = {**base, "HF_HUB_OFFLINE": "1", **overrides}
    # The stub starts the first python3 it finds on PATH to learn where installed packages lie.
    environment["PATH"] = _prepend([Path(sys.executable).parent], environment.get("PATH"))
    environment["LD_LIBRARY_PATH"] = _prepend(library_directories(wheel), environment.get("LD_LIBRARY_PATH"))
    return environment


def library_directories(wheel: Wheel) -> list[Path]:
    """Return the folders of the wheel's libraries and, if this Python brings its own libpython, of that."""
    directories = [wheel.libraries]
    for candidate in python_library_directories():
        if (candidate / libpython_name()).exists() and candidate not in directories:
            directories.append(candidate)
    return directories


def python_library_directories() -> list[Path]:
    """Return where conda, uv and shared-library builds of Python keep libpython; the loader knows the system's own."""
    built_into = sysconfig.get_config_var("LIBDIR")
    beside_python = Path(sys.base_prefix) / "lib"
    return list(dict.fromkeys([*([Path(built_into)] if built_into else []), beside_python]))


def libpython_name(python_version: tuple[int, int] = sys.version_info[:2]) -> str:
    major, minor = python_version
    return f"libpython{major}.{minor}.so.1.0"


def _place_stub(source: Path, target: Path) -> None:
    if os.access(source, os.X_OK):
        _link(source, target)
        return
    # Some installers drop the executable bit of files inside wheels.
    target.unlink(missing_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755)


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    target.symlink_to(source.resolve())


def _prepend(directories: list[Path], search_path: str | None) -> str:
    return os.pathsep.join([*map(str, directories), *([search_path] if search_path else [])])
