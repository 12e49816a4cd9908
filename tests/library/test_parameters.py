"""Parameters of a config.pbtxt as settings: strings in, typed values out, everything else refused by name."""

import re
from dataclasses import dataclass

import pytest

from refrag.errors import SetupError
from refrag.serving.parameters import parse_parameters, refuse_unknown, split_parameters


@dataclass(frozen=True)
class Settings:
    name: str = "torch"
    count: int = 1
    share: float = 0.5
    is_quiet: bool = False


def test_values_have_the_types_of_the_settings():
    assert parse_parameters({"count": "12", "share": "0.25"}, Settings) == Settings("torch", 12, 0.25)


def test_an_unknown_parameter_is_refused_with_the_known_ones():
    known = "known are ['count', 'is_quiet', 'name', 'share']; is count meant?"
    with pytest.raises(SetupError, match=re.escape(f"unknown parameters ['cuont']; {known}")):
        parse_parameters({"cuont": "12"}, Settings)


def test_a_number_that_is_none_is_refused_by_name():
    with pytest.raises(SetupError, match="parameter count is 'many'; it must be a whole number"):
        parse_parameters({"count": "many"}, Settings)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False)])
def test_a_switch_is_true_or_false(text, value):
    assert parse_parameters({"is_quiet": text}, Settings).is_quiet is value


@pytest.mark.parametrize("text", ["1", "True", "no", ""])
def test_a_switch_that_is_neither_is_refused(text):
    with pytest.raises(SetupError, match=f"parameter is_quiet is '{text}'; it must be true or false"):
        parse_parameters({"is_quiet": text}, Settings)


def test_a_setting_of_another_type_is_refused_not_left_as_text():
    @dataclass(frozen=True)
    class Odd:
        path: bytes = b""

    with pytest.raises(SetupError, match="parameter path is to be of type bytes; settings may be str, int, float"):
        parse_parameters({"path": "/tmp"}, Odd)


def test_what_triton_reads_itself_is_let_pass():
    assert parse_parameters({"EXECUTION_ENV_PATH": "/opt/venv", "count": "2"}, Settings).count == 2


def test_parameters_are_split_between_two_readers():
    own, others = split_parameters({"count": "2", "device": "cpu"}, Settings)
    assert (own, others) == ({"count": "2"}, {"device": "cpu"})


def test_a_name_that_neither_reader_has_is_refused():
    with pytest.raises(SetupError, match="unknown parameters"):
        refuse_unknown(["count", "devise"], ["count", "device"])
