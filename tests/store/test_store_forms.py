"""Values that cannot be this encoder's vectors or this tokenizer's tokens are damaged, whatever their checksum."""

import numpy as np
import pytest
from store_helpers import FINGERPRINT, FORM, OTHER, WIDTH, FakeTier, digest, vector, vectors

from refrag.store.forms import TokenForm, VectorForm
from refrag.store.store import Store
from refrag.store.tiers.memory import MemoryTier
from refrag.store.values import seal


def numbers(*values, width=WIDTH):
    return np.array([*values, *[0.5] * (width - len(values))], np.float16).tobytes()


def ids(*values):
    return np.array(values, np.int32).tobytes()


BAD_VECTORS = {
    "narrow": numbers(width=WIDTH - 1),
    "wide": numbers(width=2 * WIDTH),
    "odd": numbers() + b"\0",
    "NaN": numbers(np.nan),
    "infinite": numbers(1.0, -np.inf),
}
# Number of tokens, their ids, and a span for each two of them.
GOOD_TOKENS = ids(3, 0, 99, 7, 0, 4, 4, 4)
BAD_TOKENS = {
    "odd": GOOD_TOKENS + b"\0",
    "negative": ids(2, 1, -1, 0, 4),
    "beyond": ids(2, 1, 100, 0, 4),
    "without spans": ids(2, 1, 2),
    "a span too many": ids(2, 1, 2, 0, 4, 4, 5),
    "too many tokens": ids(2**31 - 1, 1, 2, 0, 4),
    "no tokens": ids(0),
    "a span from behind": ids(2, 1, 2, 4, 0),
    "a span below 0": ids(2, 1, 2, -1, 4),
}


@pytest.fixture
def tier():
    return FakeTier()


@pytest.fixture
def store(tier):
    store = Store(FINGERPRINT, FORM, MemoryTier(2**20), [tier])
    yield store
    store.close()


def plant(tier, owner, value, number=1):
    """Put a value past every check, with the checksum that belongs to it."""
    key = owner + digest(number)
    tier.put({key: seal(key, value)})


def test_values_of_the_form_fit_and_others_do_not_whatever_stands_beside_them():
    good = [vector(number) for number in range(3)]
    mixed = [good[0], *BAD_VECTORS.values(), *good[1:]]
    assert FORM.fit(mixed) == [True, *[False] * len(BAD_VECTORS), True, True]
    assert FORM.fit([]) == []
    assert TokenForm(100, 2).fit([GOOD_TOKENS, *BAD_TOKENS.values(), b""]) == [
        True,
        *[False] * (len(BAD_TOKENS) + 1),
    ]


@pytest.mark.parametrize("value", BAD_VECTORS.values(), ids=BAD_VECTORS)
def test_a_vector_of_another_form_is_not_found_counted_and_deleted(store, tier, value):
    plant(tier, FINGERPRINT, value)
    assert store.find([digest(1)]) == [None]
    store.wait_until_written()
    assert not tier.entries
    assert store.tiers[0].counts.corrupted == 1
    store.put(vectors([1]))
    assert store.find([digest(1)]) == [vector(1)]


@pytest.mark.parametrize("value", BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_tokens_of_another_form_are_not_found_counted_and_deleted(store, tier, value):
    tokens = store.beside(OTHER, TokenForm(100, 2))
    plant(tier, OTHER, value)
    assert tokens.find([digest(1)]) == [None]
    store.wait_until_written()
    assert not tier.entries
    assert tokens.tiers[0].counts.corrupted == 1


@pytest.mark.parametrize("value", BAD_VECTORS.values(), ids=BAD_VECTORS)
def test_a_vector_of_another_form_does_not_enter(store, tier, value):
    store.put({digest(1): value, **vectors([2])})
    assert list(tier.entries) == [FINGERPRINT + digest(2)]
    assert store.find([digest(1), digest(2)]) == [None, vector(2)]


def test_verify_finds_other_forms_of_the_fingerprints_it_knows_and_damage_in_all(store, tier):
    store.beside(OTHER, TokenForm(100, 2))
    store.put(vectors(range(10, 15)))
    for number, value in enumerate(BAD_VECTORS.values()):
        plant(tier, FINGERPRINT, value, number)
    for number, value in enumerate(BAD_TOKENS.values()):
        plant(tier, OTHER, value, number)
    plant(tier, OTHER, GOOD_TOKENS, 100)
    stranger = b"s" * 16
    plant(tier, stranger, b"whatever it is", 1)
    tier.put({stranger + digest(2): b"damaged"})
    num_bad = len(BAD_VECTORS) + len(BAD_TOKENS) + 1
    assert store.verify(store.tiers[0], b"", 100)[:2] == (num_bad + 7, num_bad)
    assert store.verify(store.tiers[0], b"", 100)[:2] == (7, 0)


def test_a_value_that_another_process_puts_in_the_place_of_one_of_another_form_stays(store, tier):
    plant(tier, FINGERPRINT, BAD_VECTORS["narrow"])
    asked = tier.get
    tier.get = lambda keys: (asked(keys), plant(tier, FINGERPRINT, vector(1)))[0]
    assert store.find([digest(1)]) == [None]
    store.wait_until_written()
    tier.get = asked
    assert store.find([digest(1)]) == [vector(1)]


def test_the_form_of_another_width_takes_none_of_these():
    assert VectorForm(WIDTH + 1).fit([vector(1)]) == [False]
