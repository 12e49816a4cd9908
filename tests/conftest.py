"""Fixtures for every tier: a tiny checkpoint of random weights, and its in-process pipeline."""

import pytest
import torch
from hypothesis import settings
from tiny import make_tiny_checkpoint

from refrag.model.checkpoint import Checkpoint
from refrag.pipeline import Pipeline

# Tests do not time: a busy machine must not fail one.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Give the tests' servers a cache folder of their own for chunk vectors, instead of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def ordinary_arithmetic():
    """Undo what `refrag train` and `evaluate` set for their process: NumPy warns of it, and other tests follow."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Checkpoint:
    return make_tiny_checkpoint()


@pytest.fixture(scope="session")
def pipeline(tiny_checkpoint) -> Pipeline:
    return Pipeline(tiny_checkpoint)
