"""constraints.txt, which `make install` follows, against what the two packages ask for."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
OURS = {"refrag", "refrag-client"}


def requirements():
    for path in ("pyproject.toml", "client/pyproject.toml"):
        project = tomllib.loads((ROOT / path).read_text())["project"]
        extras = project.get("optional-dependencies", {}).values()
        for text in [*project["dependencies"], *(text for extra in extras for text in extra)]:
            if Requirement(text).name not in OURS:
                yield text


@pytest.fixture(scope="module")
def pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("text", [*requirements()])
def test_every_requirement_is_pinned_to_a_release_that_it_allows(text, pinned):
    """`make constraints` brings them up to date."""
    requirement = Requirement(text)
    assert requirement.specifier.contains(pinned[requirement.name.lower()])


def test_only_the_server_itself_is_pinned_in_the_packages():
    """Installing the packages into NVIDIA's container must not replace its torch."""
    pinned = [text for text in requirements() if "==" in text]
    assert pinned == ["nvidia-pytriton==0.7.0"]


def test_nothing_but_the_embedded_server_forbids_numpy_2():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {"base": project["dependencies"], **project["optional-dependencies"]}
    named = {
        extra: requirement.specifier.contains("2.0")
        for extra, texts in extras.items()
        for requirement in map(Requirement, texts)
        if requirement.name == "numpy"
    }
    assert named == {"base": True, "tritonserver": False}
