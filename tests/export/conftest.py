"""One tiny checkpoint, one export of it: exporting takes seconds, so the tests share both and copy before changing."""

import shutil
from pathlib import Path

import pytest
import torch
from export_helpers import TINY

from export.repository import export_repository
from refrag.training.demo import make_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(TINY).save(folder)
    return folder


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that did not exist before the export."""
    repository = tmp_path_factory.mktemp("exported") / "model_repository"
    export_repository(checkpoint, repository)
    return repository


@pytest.fixture
def repository(exported: Path, tmp_path: Path) -> Path:
    """A copy of the exported repository, to be changed."""
    return shutil.copytree(exported, tmp_path / "model_repository")
