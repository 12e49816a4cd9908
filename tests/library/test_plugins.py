"""Plugin tables list their names, load what is asked for, and refuse the rest."""

import sys
from importlib.metadata import EntryPoint

import pytest

from refrag import plugins
from refrag.errors import InvalidRequest, SetupError
from refrag.plugins import MOST_CHARACTERS, Table


@pytest.fixture
def table(monkeypatch):
    """Return a function that makes a table with two entries of our own and those that the test installs."""

    def make(*installed):
        entries = [EntryPoint(name, place, "test.things") for name, place in installed]
        monkeypatch.setattr(plugins, "entry_points", lambda group: entries if group == "test.things" else [])
        return Table("thing", "test.things", {"pi": "math:pi", "gone": "no.such.module:THING"}, InvalidRequest)

    return make


def test_a_name_finds_what_it_stands_for(table):
    assert table().find("pi") == pytest.approx(3.14159, abs=1e-5)


def test_what_other_packages_install_is_found_behind_our_own(table):
    both = table(("e", "math:e"))
    assert both.names == ["pi", "gone", "e"]
    assert both.find("e") == pytest.approx(2.71828, abs=1e-5)


def test_an_unknown_name_is_refused_with_the_list(table):
    with pytest.raises(InvalidRequest, match="thing is 'tau'; allowed: pi, gone"):
        table().find("tau")


def test_of_a_long_unknown_name_only_the_beginning_is_compared_and_told(table, monkeypatch):
    compared = []
    monkeypatch.setattr(plugins, "suggestion", lambda names, known: compared.extend(names) or "")
    with pytest.raises(InvalidRequest, match=f"^thing is '{'x' * MOST_CHARACTERS}'; allowed: pi, gone$"):
        table().check("x" * 1_000_000)
    assert compared == ["x" * MOST_CHARACTERS]


def test_checking_a_name_loads_nothing(table):
    sys.modules.pop("this", None)
    table(("poem", "this:s")).check("poem")
    assert "this" not in sys.modules


def test_what_cannot_be_loaded_is_named_with_its_place_and_reason(table):
    with pytest.raises(SetupError, match=r"'gone' \(no.such.module:THING\) cannot be loaded: ModuleNotFoundError"):
        table().find("gone")


def test_two_packages_may_not_offer_one_name(table):
    with pytest.raises(SetupError, match="two packages offer a thing 'pi': math:pi and math:tau; uninstall one"):
        table(("pi", "math:tau")).find("pi")


def test_the_same_entry_listed_twice_is_one(table):
    """An editable install beside a wheel's metadata lists a package's entry points twice."""
    assert table(("e", "math:e"), ("e", "math:e")).names == ["pi", "gone", "e"]
