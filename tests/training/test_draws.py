"""Batches are the same whoever draws them: the training process, or processes beside it."""

import json
import multiprocessing
import os
import random

import pytest

from refrag.errors import InvalidRequest
from refrag.training.draws import open_draws


class Stream:
    """Reads on where it stopped, as from a file."""

    def __init__(self):
        self.position = 0

    def draw(self, rng, progress):
        self.position += 1
        return self.position, rng.random()

    def state(self):
        return {"position": self.position}

    def restore(self, state):
        self.position = state["position"]


class Drawer(Stream):
    """Draws by the random numbers alone."""

    def draw(self, rng, progress):
        return rng.random()

    def state(self):
        return {}


def take_all(source, num_workers, steps=range(2, 9)):
    """Return the batches of all steps, and the positions behind them."""

    def draw(step):
        return [source.draw(random.Random(f"{step} {number}"), step / 9) for number in range(2)]

    with open_draws(source, draw, steps, num_workers) as draws:
        return [(draws.take(), json.loads(draws.position)) for _ in steps]


@pytest.mark.parametrize("make_source", [Stream, Drawer])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_processes_draw_what_the_training_process_draws(make_source, num_workers):
    assert take_all(make_source(), num_workers) == take_all(make_source(), 0)


def test_the_position_is_that_behind_the_batches_that_were_taken():
    positions = [position["position"] for _, position in take_all(Stream(), num_workers=1)]
    assert positions == [2, 4, 6, 8, 10, 12, 14]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_is_wrong_with_the_data_is_told_in_its_own_words(num_workers):
    def fail(step):
        raise InvalidRequest(f"row {step} has no passages")

    with (
        open_draws(Drawer(), fail, range(4, 6), num_workers) as draws,
        pytest.raises(InvalidRequest, match=r"^row 4 has no passages$"),
    ):
        draws.take()


def test_a_fault_in_another_process_is_raised_here():
    def fail(step):
        raise ZeroDivisionError(f"step {step}")

    with (
        open_draws(Drawer(), fail, range(4, 6), num_workers=1) as draws,
        pytest.raises(ZeroDivisionError, match="step 4"),
    ):
        draws.take()


def test_a_signal_to_the_whole_group_does_not_reach_the_processes_that_draw():
    def draw(step):
        return [step, os.getpgid(0)]

    others = multiprocessing.active_children()
    with open_draws(Drawer(), draw, range(4), num_workers=1) as draws:
        _, group = draws.take()
        [worker] = [child for child in multiprocessing.active_children() if child not in others]
        assert group == worker.pid != os.getpgid(0)
    worker.join(timeout=10)
    assert not worker.is_alive()


def test_a_process_that_draws_ends_when_it_is_asked_to():
    others = multiprocessing.active_children()
    with open_draws(Drawer(), lambda step: [step], range(40), num_workers=1) as draws:
        draws.take()
        [worker] = [child for child in multiprocessing.active_children() if child not in others]
        worker.terminate()
        worker.join(timeout=10)
        assert not worker.is_alive()
