"""Tokens of passages that were stored are found again, and none that belong to another tokenizer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_helpers import FINGERPRINT, FORM, OTHER, FakeTier, digest, vectors

from refrag.config import PromptTemplate
from refrag.store.forms import TokenForm
from refrag.store.store import Store
from refrag.store.tokens import StoredTokens, digest_texts, fingerprint_tokenizer

PASSAGES = {"Mara keeps a parrot.": [5, 7, 70_000], "Odo plays the harp. 🎵": [1]}

VOCAB_SIZE = 100_000


@pytest.fixture
def tier():
    return FakeTier()


@pytest.fixture
def store(tier):
    store = Store(FINGERPRINT, FORM, None, [tier])
    yield store
    store.close()


@pytest.fixture
def tokens(store):
    return StoredTokens(store.beside(OTHER, TokenForm(VOCAB_SIZE)))


def found(tokens, passages):
    return {passage: token_ids.tolist() for passage, token_ids in tokens.find(passages).items()}


def test_what_was_kept_is_found(store, tokens):
    tokens.keep(PASSAGES)
    store.wait_until_written()
    assert found(tokens, [*PASSAGES, "another"]) == PASSAGES


@given(st.dictionaries(st.text(), st.lists(st.integers(0, 2**31 - 1))))
def test_any_tokens_of_any_text_are_found_but_none_of_empty_ones(token_ids):
    store = Store(FINGERPRINT, TokenForm(2**31), None, [FakeTier()])
    tokens = StoredTokens(store)
    tokens.keep(token_ids)
    store.close()
    assert found(tokens, list(token_ids)) == {text: ids for text, ids in token_ids.items() if ids}


def test_what_a_tier_did_not_take_is_told(tokens, tier):
    assert tokens.put({}) and tokens.put(PASSAGES)
    tier.fails = True
    assert not tokens.put(PASSAGES)


def test_damaged_tokens_are_not_found_and_are_counted(store, tokens, tier):
    tokens.keep(PASSAGES)
    store.wait_until_written()
    [first, second] = [OTHER + digest for digest in digest_texts(PASSAGES)]
    tier.entries[first] = tier.entries[first][:-1] + b"\xff"
    assert list(tokens.find(list(PASSAGES))) == list(PASSAGES)[1:]
    store.wait_until_written()
    assert list(tier.entries) == [second]
    assert (tokens.store.tiers[0].counts.corrupted, store.tiers[0].counts.corrupted) == (1, 0)


def test_tokens_and_vectors_lie_apart(store, tokens):
    """They share tiers, but have their own counts."""
    tokens.keep(PASSAGES)
    store.put(vectors([1]))
    store.wait_until_written()
    assert store.find(digest_texts(PASSAGES)) == [None, None]
    assert tokens.store.find([digest(1)]) == [None]
    assert (store.tiers[0].counts.misses, tokens.store.tiers[0].counts.misses) == (2, 1)


def test_a_tier_that_failed_for_one_is_left_alone_by_both(store, tokens, tier):
    tier.fails = True
    assert tokens.find(list(PASSAGES)) == {}
    num_calls = tier.num_calls
    assert store.find([digest(1)]) == [None]
    assert tier.num_calls == num_calls


def test_prune_leaves_the_tokens_alone(store, tokens):
    tokens.keep(PASSAGES)
    store.wait_until_written()
    num_checked, num_deleted, _ = store.prune(store.tiers[0], [], b"", 10)
    assert (num_checked, num_deleted) == (2, 0)
    store.mark_live()
    other_server = Store(b"o" * 16, FORM, None, [store.tiers[0].tier])
    assert other_server.prune(other_server.tiers[0], [], b"", 10)[1] == 0
    other_server.close()


def test_another_tokenizer_and_another_template_are_another_owner(tmp_path):
    file, template = tmp_path / "tokenizer.json", PromptTemplate()
    file.write_text("{}")
    first = fingerprint_tokenizer([file], template)
    assert fingerprint_tokenizer([file], template) == first
    file.write_text("{ }")
    others = [fingerprint_tokenizer([file], template), fingerprint_tokenizer([file], PromptTemplate("- "))]
    assert len({first, *others}) == 3
