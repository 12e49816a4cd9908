"""Both packages have the version that one file names."""

from importlib.metadata import version
from pathlib import Path

import pytest

import refrag

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("package", ["refrag", "refrag-client"])
def test_both_packages_have_the_version_of_the_file(package):
    """`make install` brings an environment up to date."""
    assert version(package) == (ROOT / "VERSION").read_text().strip()


def test_the_library_tells_it():
    assert refrag.__version__ == version("refrag")
