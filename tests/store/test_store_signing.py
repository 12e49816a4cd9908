"""A tag fits the row that it was made for, under its key, and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refrag.errors import SetupError
from refrag.store.signing import CHUNK, MODEL_OUTPUT, are_signed, load_graph_key, sign_rows, unsigned
from refrag.variables import GRAPH_KEY

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
COLUMNS = st.integers(0, 4).flatmap(
    lambda count: st.tuples(
        arrays(np.int64, (count, 3), elements=st.integers(0, 1)),
        arrays(np.float32, (count, 2), elements=st.floats(-1, 1, width=32)),
    )
)


@given(COLUMNS)
def test_every_row_has_the_tag_that_fits_it(columns):
    tags = sign_rows(KEY, CHUNK, columns)
    assert tags.shape == (len(columns[0]), 4)
    assert tags.dtype == np.int32
    assert are_signed(KEY, CHUNK, columns, tags).all()
    alone = [sign_rows(KEY, CHUNK, [column[row : row + 1] for column in columns])[0] for row in range(len(tags))]
    assert np.array_equal(tags, np.array(alone, np.int32).reshape(-1, 4)), "batched = alone"


def test_a_tag_fits_no_other_row_kind_key_or_cut():
    ids, vectors = np.arange(6).reshape(2, 3), np.ones((2, 2), np.float32)
    tags = sign_rows(KEY, CHUNK, (ids, vectors))
    changed = vectors.copy()
    changed[1, 1] = np.nextafter(np.float32(1), np.float32(2))
    assert are_signed(KEY, CHUNK, (ids, changed), tags).tolist() == [True, False]
    assert not are_signed(KEY, CHUNK, (ids[::-1], vectors), tags).any()
    assert not are_signed(KEY, MODEL_OUTPUT, (ids, vectors), tags).any()
    assert not are_signed(OTHER_KEY, CHUNK, (ids, vectors), tags).any()
    moved = np.concatenate([ids[:, 2:].view(np.float32), vectors], axis=1)
    assert not are_signed(KEY, CHUNK, (ids[:, :2], moved), tags).any()
    assert not are_signed(KEY, CHUNK, (ids, vectors), unsigned(2)).any()


def test_without_a_key_nothing_is_signed():
    ids = np.arange(6).reshape(2, 3)
    assert not sign_rows(None, CHUNK, [ids]).any()
    assert not are_signed(None, CHUNK, [ids], unsigned(2)).any()


@pytest.mark.parametrize("text, key", [("", None), ("ab" * 32, b"\xab" * 32)])
def test_the_key_comes_from_the_environment(monkeypatch, text, key):
    monkeypatch.setenv(GRAPH_KEY, text)
    assert load_graph_key() == key


@pytest.mark.parametrize("text", ["secret", "ab" * 15, "ab" * 65, "abc"])
def test_what_is_no_key_is_refused_without_being_shown(monkeypatch, text):
    monkeypatch.setenv(GRAPH_KEY, text)
    with pytest.raises(SetupError, match="32 to 128 hexadecimal digits") as caught:
        load_graph_key()
    assert text not in str(caught.value)
