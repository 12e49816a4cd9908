"""A value is read back as it was stored, or not at all."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refrag.store.values import open_sealed, round_to_stored, seal

KEYS, VECTORS = st.binary(min_size=32, max_size=32), st.binary(min_size=2, max_size=64)


@given(KEYS, VECTORS)
def test_an_intact_value_opens(key, vector):
    assert open_sealed(key, seal(key, vector)) == vector


@given(KEYS, VECTORS, st.data())
def test_a_value_with_any_bit_flipped_does_not(key, vector, data):
    value = bytearray(seal(key, vector))
    bit = data.draw(st.integers(0, 8 * len(value) - 1))
    value[bit // 8] ^= 1 << bit % 8
    assert open_sealed(key, bytes(value)) is None


@given(KEYS, VECTORS, st.data())
def test_a_value_cut_off_or_prolonged_does_not(key, vector, data):
    value = seal(key, vector)
    assert open_sealed(key, value[: data.draw(st.integers(0, len(value) - 1))]) is None
    assert open_sealed(key, value + b"\0") is None


@given(KEYS, KEYS, VECTORS)
def test_a_value_under_another_key_does_not(key, other, vector):
    assert (open_sealed(other, seal(key, vector)) is None) == (key != other)


def test_numbers_beyond_half_precision_are_cut_and_others_rounded():
    rounded = round_to_stored(np.array([[1e9, -1e9, 0.1]], np.float32))
    assert rounded.tolist() == [[65504.0, -65504.0, float(np.float16(0.1))]]
    assert np.isnan(round_to_stored(np.array([[np.nan]], np.float32))).all()
