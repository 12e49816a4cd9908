"""Fixtures of the tests that run stages."""

from contextlib import contextmanager

import pytest
from accelerate.state import AcceleratorState


@contextmanager
def cpu_accelerator():
    """Accelerate keeps its state for the whole process: here one of its own, on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def accelerator_of_test():
    with cpu_accelerator():
        yield


@pytest.fixture(scope="module")
def accelerator_of_module():
    with cpu_accelerator():
        yield
