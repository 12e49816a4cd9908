"""Imports point one way: errors, config ← model ← engine ← serving; the client stands alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What each package must not import.
FORBIDDEN = {
    "refrag/errors.py": ["refrag"],
    "refrag/config.py": ["refrag.model", "refrag.engine", "refrag.serving", "refrag.training", "torch"],
    "refrag/context/chunking.py": ["refrag.model", "refrag.engine", "refrag.serving", "refrag.training", "torch"],
    "refrag/prompt.py": ["refrag.model", "refrag.engine", "refrag.serving", "refrag.training", "torch"],
    "refrag/request.py": ["refrag.model", "refrag.engine", "refrag.serving", "refrag.training", "torch"],
    "refrag/context/prepare.py": ["refrag.model", "refrag.engine", "refrag.serving", "refrag.training", "torch"],
    "refrag/policies": ["refrag.engine", "refrag.decoders", "refrag.serving", "refrag.training", "refrag.pipeline"],
    "refrag/pipeline.py": ["refrag.serving", "refrag.training", "refrag.evaluation", "refrag.embedded"],
    "refrag/evaluation": ["refrag.serving", "refrag.embedded", "refrag_client"],
    "refrag/model": ["refrag.engine", "refrag.serving", "refrag.training", "refrag.evaluation", "refrag.pipeline"],
    "refrag/engine": ["refrag.serving", "refrag.training", "refrag.evaluation", "refrag.pipeline"],
    "refrag/engine/scheduler.py": ["torch", "transformers", "refrag.model"],
    "refrag/engine/block_pool.py": ["torch", "transformers", "refrag.model"],
    "refrag/store": ["torch", "transformers", "refrag.model", "refrag.engine", "refrag.serving", "refrag.training"],
    "refrag/training": ["refrag.engine", "refrag.serving", "refrag.embedded"],
    "refrag/serving": ["refrag.training", "refrag.evaluation", "refrag.embedded"],
    "refrag/embedded": ["refrag.model", "refrag.engine", "refrag.serving", "refrag.training", "torch"],
    "perf": ["refrag.training", "refrag.serving", "refrag.pipeline"],
    "export": ["refrag.engine", "refrag.serving", "refrag.training"],
    "client/src": ["refrag", "torch", "transformers"],
}


def python_files(place):
    path = ROOT / place
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("place", FORBIDDEN)
def test_no_package_imports_what_stands_above_it(place):
    files = python_files(place)
    assert files
    for path in files:
        for module in imported_modules(path):
            for forbidden in FORBIDDEN[place]:
                assert module != forbidden and not module.startswith(f"{forbidden}."), (path.name, module)


@pytest.mark.parametrize("module", ["refrag.context.prepare", "refrag.model.tokenizers", "refrag.store.settings"])
def test_preprocessing_needs_no_torch(module):
    """Three processes of the server would import it, and take most of its start for it."""
    subprocess.run([sys.executable, "-c", f"import sys, {module}; sys.exit('torch' in sys.modules)"], check=True)


def test_one_module_alone_knows_the_python_backend():
    users = [
        path.relative_to(ROOT).as_posix()
        for path in python_files("refrag")
        if "backends" not in path.parts and "triton_python_backend_utils" in imported_modules(path)
    ]
    assert users == ["refrag/serving/triton.py"]


def test_the_models_of_the_repository_hold_no_ideas():
    models = sorted((ROOT / "model_repository").glob("*/1/model.py"))
    assert models
    assert all(len(path.read_text().splitlines()) <= 30 for path in models)
