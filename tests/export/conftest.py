"""Fixtures of a tiny checkpoint and its export; exporting takes seconds, so tests share them and change copies."""

import shutil
from pathlib import Path

import pytest
from tiny import make_tiny_checkpoint

from refrag.export.repository import export_repository


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_tiny_checkpoint(
        width=16, num_layers=1, num_heads=2, vocab_size=300, policy_width=16, max_prompt_slots=64
    ).save(folder)
    return folder


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository that did not exist before the export."""
    repository = tmp_path_factory.mktemp("exported") / "model_repository"
    export_repository(checkpoint, repository)
    return repository


@pytest.fixture
def repository(exported: Path, tmp_path: Path) -> Path:
    """Return a copy of the exported repository, to be changed."""
    return shutil.copytree(exported, tmp_path / "model_repository")
