"""The stop file cuts the answers once it appears, and not because an earlier run has left it."""

import os

import pytest

from refrag.serving import stopping
from refrag.serving.stopping import StopFile

NEVER_SECONDS = 600.0


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Return the path of the stop file, which is looked for only when a test says so."""
    monkeypatch.setenv("REFRAG_STOP_FILE", str(tmp_path / "stopping"))
    monkeypatch.setattr(stopping, "_POLL_SECONDS", NEVER_SECONDS)
    return tmp_path / "stopping"


@pytest.fixture
def watch():
    """Return a function that makes a watch whose stop notes itself in a list, and cuts three answers."""
    watches = []

    def make():
        stops = []
        watches.append(StopFile(lambda: stops.append("stop") or 3))
        return watches[-1], stops

    yield make
    for each in watches:
        each.close()


def test_a_file_that_appears_cuts_the_answers_once(path, watch):
    stop_file, stops = watch()
    stop_file._look()
    assert stops == []
    path.touch()
    stop_file._look()
    stop_file._look()
    assert stops == ["stop"]
    assert path.with_suffix(".cut").read_text() == "3"


def test_every_watch_of_a_file_cuts_its_own_answers(path, watch):
    watches = [watch(), watch()]
    path.touch()
    for stop_file, _ in watches:
        stop_file._look()
    assert [stops for _, stops in watches] == [["stop"], ["stop"]]


def test_a_file_that_an_earlier_run_has_left_cuts_nothing(path, watch):
    path.touch()
    stop_file, stops = watch()
    stop_file._look()
    assert stops == []
    assert not path.with_suffix(".cut").exists()


@pytest.mark.parametrize("is_made_anew", [False, True])
def test_a_file_that_was_left_and_is_touched_again_or_made_anew_cuts_the_answers(path, watch, is_made_anew):
    path.touch()
    os.utime(path, (0, 0))
    stop_file, stops = watch()
    if is_made_anew:
        path.unlink()
        stop_file._look()
    path.touch()
    stop_file._look()
    assert stops == ["stop"]


def test_without_a_name_nothing_is_looked_for(watch, monkeypatch):
    monkeypatch.delenv("REFRAG_STOP_FILE", raising=False)
    stop_file, stops = watch()
    stop_file.close()
    assert stops == []
