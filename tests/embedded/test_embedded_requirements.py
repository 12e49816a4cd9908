"""Every way a machine can fall short is reported with what was found, what is needed and what to do."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from refrag.embedded.requirements import Machine, check_machine, require_machine
from refrag.embedded.runtime import Wheel
from refrag.embedded.settings import ServerSettings
from refrag.errors import SetupError

SETTINGS = ServerSettings(model_repository=Path("models"))
HEALTHY = Machine(
    system="Linux",
    architecture="x86_64",
    glibc_version=(2, 36),
    python_version=(3, 11),
    wheel=Wheel("0.7.0", Path("wheel"), Path("wheel.libs")),
    has_server_binary=True,
    stub_versions=("3.10", "3.11"),
    missing_libraries=(),
    searched_directories=(Path("/opt/python/lib"),),
    busy_ports={},
    shared_memory_free_bytes=2**30,
    is_shared_memory_writable=True,
    num_models=2,
)


def problems_of(settings: ServerSettings = SETTINGS, **facts: object) -> list[str]:
    findings = check_machine(replace(HEALTHY, **facts), settings)
    return [finding.problem for finding in findings if finding.problem]


def test_a_healthy_machine_has_no_problem():
    assert problems_of() == []
    require_machine(HEALTHY, SETTINGS)


@pytest.mark.parametrize(
    ("facts", "found", "remedy"),
    [
        ({"architecture": "aarch64"}, "this is Linux aarch64", "Linux x86_64"),
        ({"system": "Darwin"}, "this is Darwin x86_64", "NVIDIA's container"),
        ({"glibc_version": (2, 31)}, "glibc 2.31 found", "glibc 2.35 or newer"),
        ({"glibc_version": None}, "no glibc found", "Alpine"),
        ({"wheel": None, "stub_versions": ()}, "not installed", "pip install 'refrag[server]'"),
        ({"has_server_binary": False}, "lacks wheel/bin/tritonserver", "--only-binary"),
        ({"python_version": (3, 14)}, "Python 3.14", "3.10, 3.11"),
        ({"missing_libraries": ("libpython3.11.so.1.0",)}, "/opt/python/lib", "apt-get install libpython3.11"),
        ({"missing_libraries": ("libpython3.11.so.1.0",)}, "pyenv", "--enable-shared"),
        ({"missing_libraries": ("libz.so.1",)}, "needs libz.so.1", "install the package"),
        ({"shared_memory_free_bytes": None}, "/dev/shm is absent", "--shm-size=1g"),
        ({"is_shared_memory_writable": False}, "not writable", "chmod 1777"),
        ({"shared_memory_free_bytes": 64 * 2**20}, "64 MiB free", "2 model(s) need 128 MiB: in Docker with --shm-size"),
        ({"busy_ports": {8000: "Address already in use"}}, "http port 8000", "--http-port"),
        ({"busy_ports": {8001: "Address already in use"}}, "grpc port 8001", "--grpc-port"),
        ({"busy_ports": {8002: "Address already in use"}}, "metrics port 8002", "--metrics-port"),
        ({"num_models": None}, "no folder models", "--model-repository"),
        ({"num_models": 0}, "no models in models", "--model-repository"),
    ],
)
def test_a_missing_requirement_is_named_with_its_remedy(facts, found, remedy):
    (problem,) = problems_of(**facts)
    assert found in problem
    assert remedy in problem


def test_all_problems_are_reported_in_one_error():
    machine = replace(HEALTHY, glibc_version=(2, 31), busy_ports={8000: "Permission denied"}, num_models=0)
    with pytest.raises(SetupError, match=r"(?s)3 problem\(s\).*glibc 2\.31.*port 8000 .*Permission denied.*no models"):
        require_machine(machine, SETTINGS)


def test_a_port_to_be_picked_is_never_in_use():
    settings = replace(SETTINGS, http_port=0)
    assert problems_of(settings, busy_ports={0: ""}) == []


def test_inspecting_this_machine_finds_its_models_and_its_python(tmp_path):
    (tmp_path / "decoder").mkdir()
    (tmp_path / ".git").mkdir()
    machine = Machine.inspect(ServerSettings(model_repository=tmp_path, http_port=0, grpc_port=0, metrics_port=0))
    assert machine.num_models == 1
    assert machine.python_version == sys.version_info[:2]
