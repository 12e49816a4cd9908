"""Batches are the same whoever draws them: the training process, or processes beside it."""

import json
import random

import pytest

from refrag.training.draws import Draws


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

    draws = Draws(source, draw, steps, num_workers)
    return [(draws.take(), json.loads(draws.position)) for _ in steps]


@pytest.mark.parametrize("make_source", [Stream, Drawer])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_processes_draw_what_the_training_process_draws(make_source, num_workers):
    assert take_all(make_source(), num_workers) == take_all(make_source(), 0)


def test_the_position_is_that_behind_the_batches_that_were_taken():
    positions = [position["position"] for _, position in take_all(Stream(), num_workers=1)]
    assert positions == [2, 4, 6, 8, 10, 12, 14]


def test_what_fails_in_another_process_is_raised_here():
    def fail(step):
        raise ValueError(f"step {step} cannot be drawn")

    with pytest.raises(ValueError, match="step 4 cannot be drawn"):
        Draws(Drawer(), fail, range(4, 6), num_workers=1).take()
