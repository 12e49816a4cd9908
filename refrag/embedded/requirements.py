"""Checks all that the embedded server needs of a machine before anything starts.

`Machine` holds the facts, gathered in one place; every check is a pure function of those facts, so a test
describes a broken machine instead of breaking one.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from refrag.embedded.leftovers import SHARED_MEMORY
from refrag.embedded.ports import why_not_free
from refrag.embedded.runtime import (
    Wheel,
    build_environment,
    find_wheel,
    libpython_name,
    python_library_directories,
)
from refrag.embedded.settings import ServerSettings
from refrag.errors import SetupError

NEEDED_GLIBC = (2, 35)
# A model instance begins with 16 MiB and grows when a request or an answer is larger.
SHARED_MEMORY_BYTES_PER_MODEL = 64 * 2**20
_MIB = 2**20


@dataclass(frozen=True)
class Machine:
    """The facts about a machine that the checks look at."""

    system: str
    architecture: str
    glibc_version: tuple[int, int] | None
    python_version: tuple[int, int]
    wheel: Wheel | None
    has_server_binary: bool
    stub_versions: tuple[str, ...]
    missing_libraries: tuple[str, ...]
    searched_directories: tuple[Path, ...]
    # With the system's reason.
    busy_ports: Mapping[int, str]
    shared_memory_free_bytes: int | None
    is_shared_memory_writable: bool
    num_models: int | None

    @classmethod
    def inspect(cls, settings: ServerSettings) -> "Machine":
        wheel = find_wheel()
        return cls(
            system=platform.system(),
            architecture=platform.machine(),
            glibc_version=_read_glibc_version(),
            python_version=sys.version_info[:2],
            wheel=wheel,
            has_server_binary=wheel is not None and wheel.server_binary.is_file(),
            stub_versions=wheel.stub_versions if wheel else (),
            missing_libraries=_find_missing_libraries(wheel) if wheel else (),
            searched_directories=tuple(python_library_directories()),
            busy_ports=_find_busy_ports(settings),
            shared_memory_free_bytes=shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None,
            is_shared_memory_writable=os.access(SHARED_MEMORY, os.W_OK),
            num_models=_count_models(settings.model_repository),
        )


@dataclass(frozen=True)
class Finding:
    """A requirement: what was found, and the problem with its remedy, None if the requirement is met."""

    name: str
    found: str
    problem: str | None = None


def require_machine(machine: Machine, settings: ServerSettings) -> None:
    """Raise one SetupError that names everything `machine` lacks."""
    problems = [finding.problem for finding in check_machine(machine, settings) if finding.problem]
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise SetupError(f"the embedded server cannot start here, {len(problems)} problem(s):\n{lines}")


def check_machine(machine: Machine, settings: ServerSettings) -> list[Finding]:
    """Return a finding for each requirement, met or not."""
    checks: list[Callable[[Machine], Finding]] = [
        _check_platform,
        _check_glibc,
        _check_wheel,
        _check_stub,
        _check_libraries,
        _check_shared_memory,
    ]
    return [
        *(check(machine) for check in checks),
        *(_check_port(machine, settings.host, name, port) for name, port in settings.ports.items()),
        _check_model_repository(machine, settings.model_repository),
    ]


def _check_platform(machine: Machine) -> Finding:
    found = f"{machine.system} {machine.architecture}"
    if (machine.system, machine.architecture) == ("Linux", "x86_64"):
        return Finding("platform", found)
    problem = f"this is {found}; the server is built for Linux x86_64: run it there, or in NVIDIA's container"
    return Finding("platform", found, problem)


def _check_glibc(machine: Machine) -> Finding:
    needed = _dotted(NEEDED_GLIBC)
    found = f"glibc {_dotted(machine.glibc_version)}" if machine.glibc_version else "no glibc"
    if machine.glibc_version and machine.glibc_version >= NEEDED_GLIBC:
        return Finding("C library", found)
    problem = (
        f"{found} found, the server needs glibc {needed} or newer: "
        "use Ubuntu 22.04, Debian 12 or later (Alpine has no glibc), or NVIDIA's container"
    )
    return Finding("C library", found, problem)


def _check_wheel(machine: Machine) -> Finding:
    if machine.wheel is None:
        problem = "nvidia-pytriton, which carries the server, is not installed: pip install 'refrag[server]'"
        return Finding("server", "nvidia-pytriton not installed", problem)
    found = f"nvidia-pytriton {machine.wheel.version}"
    if machine.has_server_binary:
        return Finding("server", found)
    problem = (
        f"{found} is installed but lacks {machine.wheel.server_binary}, as a build from source does: "
        "pip install --force-reinstall --only-binary :all: nvidia-pytriton==0.7.0"
    )
    return Finding("server", found, problem)


def _check_stub(machine: Machine) -> Finding:
    version = _dotted(machine.python_version)
    # Without the wheel there is no list to compare with, and its absence is reported already.
    if machine.wheel is None or version in machine.stub_versions:
        return Finding("Python", f"Python {version}")
    available = ", ".join(machine.stub_versions) or "none"
    problem = (
        f"this is Python {version}; the server runs Python models only on Python {available}: "
        "create the virtual environment with one of those"
    )
    return Finding("Python", f"Python {version}", problem)


def _check_libraries(machine: Machine) -> Finding:
    if not machine.missing_libraries:
        return Finding("shared libraries", "all found")
    found = f"missing {', '.join(machine.missing_libraries)}"
    libpython = libpython_name(machine.python_version)
    others = [name for name in machine.missing_libraries if name != libpython]
    remedies = [f"the server needs {name}: install the package that provides it" for name in others]
    if libpython in machine.missing_libraries:
        remedies.insert(0, _explain_libpython(libpython, machine))
    return Finding("shared libraries", found, "; ".join(remedies))


def _explain_libpython(libpython: str, machine: Machine) -> str:
    version = _dotted(machine.python_version)
    searched = ", ".join(map(str, machine.searched_directories))
    return (
        f"{libpython}, which Python models run on, is neither on the loader's path nor in {searched}. "
        f"Debian, Ubuntu: apt-get install libpython{version}; "
        f"pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install --force {version}; "
        f"conda: conda install python={version} and create the virtual environment from that Python"
    )


def _check_shared_memory(machine: Machine) -> Finding:
    name, free_bytes = "shared memory", machine.shared_memory_free_bytes
    if free_bytes is None:
        return Finding(name, "no /dev/shm", f"/dev/shm is absent: mount it, {_SHARED_MEMORY_REMEDY}")
    found = f"{free_bytes // _MIB} MiB free in /dev/shm"
    if not machine.is_shared_memory_writable:
        return Finding(name, found, f"/dev/shm is not writable for this user: chmod 1777 it or {_SHARED_MEMORY_REMEDY}")
    num_models = max(1, machine.num_models or 0)
    needed_bytes = num_models * SHARED_MEMORY_BYTES_PER_MODEL
    if free_bytes >= needed_bytes:
        return Finding(name, found)
    problem = (
        f"{found}, {num_models} model(s) need {needed_bytes // _MIB} MiB: {_SHARED_MEMORY_REMEDY}, "
        "or remove what other programs left there"
    )
    return Finding(name, found, problem)


_SHARED_MEMORY_REMEDY = (
    "in Docker with --shm-size=1g (its default is 64 MB), in Kubernetes with an emptyDir of medium Memory on /dev/shm"
)


def _check_port(machine: Machine, host: str, name: str, port: int) -> Finding:
    label = f"{name} port"
    if port == 0:
        return Finding(label, "a free one is picked")
    if port not in machine.busy_ports:
        return Finding(label, f"{port} is free")
    problem = (
        f"{name} port {port} cannot be opened on {host} ({machine.busy_ports[port]}): "
        f"choose another with --{name}-port ({name}_port=… in Python), 0 picks a free one"
    )
    return Finding(label, f"{port} cannot be opened", problem)


def _check_model_repository(machine: Machine, model_repository: Path) -> Finding:
    if machine.num_models:
        return Finding("model repository", f"{machine.num_models} model(s) in {model_repository}")
    found = f"no models in {model_repository}" if machine.num_models == 0 else f"no folder {model_repository}"
    problem = (
        f"{found}: make it with `refrag export`, "
        "or name the folder that holds one folder per model with --model-repository"
    )
    return Finding("model repository", found, problem)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _read_glibc_version() -> tuple[int, int] | None:
    library, version = platform.libc_ver()
    if library != "glibc":
        return None
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _find_missing_libraries(wheel: Wheel) -> tuple[str, ...]:
    """Return what the loader itself misses, since only it knows its cache, its paths and the names inside the wheel."""
    environment = build_environment(wheel, os.environ, {"LD_TRACE_LOADED_OBJECTS": "1"})
    missing: list[str] = []
    for binary in (wheel.server_binary, wheel.find_stub(sys.version_info[:2])):
        if not os.access(binary, os.X_OK):
            continue
        try:
            trace = subprocess.run([binary], env=environment, capture_output=True, text=True, timeout=20)
        except OSError:  # built for another platform, which has its own check
            continue
        missing += re.findall(r"^\s*(\S+) => not found", trace.stdout, re.MULTILINE)
    return tuple(dict.fromkeys(missing))


def _find_busy_ports(settings: ServerSettings) -> dict[int, str]:
    reasons = {port: why_not_free(settings.host, port) for port in settings.ports.values() if port}
    return {port: reason for port, reason in reasons.items() if reason}


def _count_models(model_repository: Path) -> int | None:
    if not model_repository.is_dir():
        return None
    return sum(1 for folder in model_repository.iterdir() if folder.is_dir() and not folder.name.startswith("."))
