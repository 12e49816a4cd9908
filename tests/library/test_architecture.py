"""Import-linter sees every package, and the rules hold that it cannot check; its own rules are in pyproject.toml."""

import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("module", ["refrag.context.prepare", "refrag.model.tokenizers", "refrag.store.settings"])
def test_preprocessing_needs_no_torch(module):
    """Three processes of the server would import torch, which would take most of the server's start."""
    subprocess.run([sys.executable, "-c", f"import sys, {module}; sys.exit('torch' in sys.modules)"], check=True)


def test_the_contracts_see_through_the_link_to_export():
    imports = grimp.build_graph("refrag")
    assert "refrag.errors" in imports.find_modules_directly_imported_by("refrag.export.repository")
    assert "refrag.export.repository" in imports.find_modules_that_directly_import("refrag.export.parts")


def test_the_models_of_the_repository_hold_no_ideas():
    models = sorted((ROOT / "model_repository").glob("*/1/model.py"))
    assert models
    assert all(len(path.read_text().splitlines()) <= 30 for path in models)
