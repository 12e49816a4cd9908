"""Fixtures for every tier: a tiny checkpoint of random weights, and its in-process pipeline."""

import pytest
from hypothesis import settings

from refrag.model.checkpoint import Checkpoint
from refrag.pipeline import Pipeline
from refrag.training.demo import DemoSettings, make_checkpoint

# Tests do not time: a busy machine must not fail one.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Checkpoint:
    settings = DemoSettings(vocab_size=512, width=48, num_decoder_layers=2, num_heads=4, policy_width=32)
    checkpoint = make_checkpoint(settings)
    for module in checkpoint.modules.values():
        module.eval()
    return checkpoint


@pytest.fixture(scope="session")
def pipeline(tiny_checkpoint) -> Pipeline:
    return Pipeline(tiny_checkpoint)
