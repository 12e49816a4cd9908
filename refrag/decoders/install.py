"""Makes the Python environment of a decoder that cannot share the server's, whose pins exclude its own.

<folder>/              a virtual environment, in which Triton starts the model `decoder`
    …/site-packages/   all that the decoder needs, as its requirements file pins it
        numpy          1.26, whatever the others ask for: Triton's Python processes read wrong values with NumPy 2
        refrag         a link to this package
    venv_made          written once the virtual environment is whole, pip included
    made.json          written last: what the environment was made of

An interrupted run is gone on with by the next, and a finished one is left as it is.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from refrag.errors import InvalidRequest, SetupError
from refrag.spelling import suggestion

Device = Literal["cpu", "cuda"]

REQUIREMENTS = Path(__file__).parent / "environments"
PACKAGE = Path(__file__).parents[1]
NUMPY = "numpy==1.26.4"
MADE, VENV_MADE = "made.json", "venv_made"
_GIB = 2**30


@dataclass(frozen=True)
class Recipe:
    """Directions for making an environment: a requirements file for each device, and the disk space that it takes."""

    files: dict[Device, str]
    needed_gib: dict[Device, int]


RECIPES = {"vllm": Recipe({"cpu": "vllm-cpu.txt", "cuda": "vllm-cuda.txt"}, {"cpu": 4, "cuda": 14})}


def install(decoder: str, folder: Path, device: Device) -> bool:
    """Make the environment of a decoder in `folder`; return False if it was made already.

    Raises InvalidRequest for a decoder that needs none, and SetupError with pip's words if a step fails.
    """
    recipe = find_recipe(decoder)
    made_of = _describe(recipe, device)
    if is_made(folder, made_of):
        return False
    _check_space(folder, recipe.needed_gib[device])
    (folder / MADE).unlink(missing_ok=True)
    packages = _make_venv(folder)
    requirements = ["--requirement", str(REQUIREMENTS / recipe.files[device])]
    # Pinned whole for a CPU; of a CUDA build's dependencies, many are for pip to choose by the machine.
    _pip(folder, *(["--no-deps"] if device == "cpu" else []), *requirements)
    _pip(folder, "--no-deps", NUMPY)
    _link(PACKAGE, packages / PACKAGE.name)
    (folder / MADE).write_text(json.dumps(made_of, indent=2) + "\n")
    return True


def find_recipe(decoder: str) -> Recipe:
    if decoder not in RECIPES:
        raise InvalidRequest(
            f"the decoder {decoder!r} has no environment of its own to install; those that have: "
            f"{', '.join(RECIPES)}{suggestion([decoder], list(RECIPES))}"
        )
    return RECIPES[decoder]


def find_device() -> Device:
    """Return cuda where NVIDIA's driver is loaded, else cpu."""
    return "cuda" if Path("/proc/driver/nvidia/version").exists() else "cpu"


def server_environment(folder: Path) -> Path:
    """Return the environment for Triton; raise SetupError if it is not made, or not for this Python."""
    made = _read_made(folder)
    if made is None:
        raise SetupError(f"{folder} holds no finished environment; make it with `refrag decoders install`")
    if made.get("python") != _python():
        raise SetupError(
            f"the environment in {folder} was made for Python {made.get('python')}, and this is {_python()}, which the "
            "server runs its models with; make it again with `refrag decoders install`"
        )
    return folder.resolve()


def is_made(folder: Path, made_of: dict[str, Any]) -> bool:
    return _read_made(folder) == made_of


def _describe(recipe: Recipe, device: Device) -> dict[str, Any]:
    requirements = (REQUIREMENTS / recipe.files[device]).read_bytes()
    return {
        "device": device,
        "python": _python(),
        "requirements": hashlib.sha256(requirements).hexdigest(),
        "numpy": NUMPY,
        "refrag": str(PACKAGE),
    }


def _read_made(folder: Path) -> dict[str, Any] | None:
    try:
        made = json.loads((folder / MADE).read_text())
    except (OSError, ValueError):
        return None
    return made if isinstance(made, dict) else None


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _check_space(folder: Path, needed_gib: int) -> None:
    parent = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(parent).free
    if free < needed_gib * _GIB:
        raise SetupError(
            f"{parent} has {free / _GIB:.1f} GiB free, and the environment needs about {needed_gib} GiB; free some, or "
            "name another folder with --folder"
        )


def _make_venv(folder: Path) -> Path:
    """Make a virtual environment unless it is there in whole, and return where its packages lie."""
    # Made over one that lacks pip, it completes it; what has been installed stays.
    if not (folder / VENV_MADE).exists():
        _run([sys.executable, "-m", "venv", str(folder)])
        (folder / VENV_MADE).touch()
    return (folder / "lib" / f"python{_python()}" / "site-packages").resolve()


def _pip(environment: Path, *arguments: str) -> None:
    python = str(environment / "bin" / "python")
    _run([python, "-m", "pip", "install", "--disable-pip-version-check", *arguments])


def _run(command: list[str]) -> None:
    """Run a command whose output the user sees; raise SetupError if it fails."""
    if code := subprocess.run(command, check=False).returncode:
        raise SetupError(
            f"`{' '.join(command)}` failed with exit code {code}, and what it said stands above; run the command again "
            "to go on where it stopped"
        )


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    target.symlink_to(source)
