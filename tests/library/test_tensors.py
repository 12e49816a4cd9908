import numpy as np
import pytest

from refrag.errors import InvalidRequest
from refrag.serving.tensors import check_bytes, flag, integer, scalar, text, texts


def as_bytes(*values):
    return np.array(values, dtype=np.object_)


def test_absent_tensors_are_none_or_empty():
    assert scalar({}, "a") is integer({}, "a") is text({}, "a") is None
    assert texts({}, "a") == []
    assert flag({}, "a", default=True) is True


def test_present_tensors_are_plain_python_values():
    assert integer({"a": np.array([7], np.int32)}, "a") == 7
    assert integer({"a": np.array([2**64 - 1], np.uint64)}, "a") == 2**64 - 1
    assert flag({"a": np.array([False])}, "a", default=True) is False
    assert texts({"a": as_bytes(b"x", "é".encode())}, "a") == ["x", "é"]


@pytest.mark.parametrize("value", [0.01, 0.7, 1e-7, 1.0000002, -0.0, 3e38])
def test_a_number_in_fp32_is_the_shortest_one_that_it_stands_for(value):
    assert scalar({"a": np.array([value], np.float32)}, "a") == value


@pytest.mark.parametrize("shape", [(0,), (2,)])
def test_a_scalar_of_several_elements_is_refused_by_name(shape):
    with pytest.raises(InvalidRequest, match="max_tokens has shape"):
        integer({"max_tokens": np.zeros(shape, np.int32)}, "max_tokens")


def test_invalid_utf8_is_refused_with_name_and_place():
    with pytest.raises(InvalidRequest, match=r"passages\[1\] is not valid UTF-8 \(byte 0xff at offset 1\)"):
        texts({"passages": as_bytes(b"ok", b"a\xff")}, "passages")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("text_input", "question"), ("passages", "passages"), ("history", "turns"), ("documents", "documents")],
)
def test_too_many_bytes_are_refused_with_a_remedy_for_the_input_that_holds_most(name, remedy):
    tensors = {name: as_bytes(b"ab", b"cd"), "other": as_bytes(b"e")}
    check_bytes(tensors, [name, "other"], 5)
    with pytest.raises(InvalidRequest, match=f"{name} and other hold 5 bytes, the limit is 4; .* {remedy}"):
        check_bytes(tensors, [name, "other"], 4)
