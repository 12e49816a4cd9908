"""Tokens of passages that were stored are found again, and none that belong to another tokenizer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_helpers import FINGERPRINT, FORM, OTHER, FakeTier, digest, vectors

from refrag.config import PromptTemplate
from refrag.context.spans import PassageTokens
from refrag.store.forms import TokenForm
from refrag.store.store import Store
from refrag.store.tokens import StoredTokens, digest_texts, fingerprint_tokenizer

SPANS = np.array([(0, 6), (5, 20)], np.int32)
# With two tokens to a chunk.
PASSAGES = {
    "Mara keeps a parrot.": PassageTokens([5, 7, 70_000], SPANS),
    "Odo plays the harp. 🎵": PassageTokens([1], np.array([(0, 21)], np.int32)),
}

VOCAB_SIZE, CHUNK_SIZE = 100_000, 2


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
    return StoredTokens(store.beside(OTHER, TokenForm(VOCAB_SIZE, CHUNK_SIZE)))


def found(tokens, passages):
    return as_lists(tokens.find(passages))


def as_lists(tokens):
    return {passage: (list(each.token_ids), each.spans.tolist()) for passage, each in tokens.items()}


def test_what_was_kept_is_found(store, tokens):
    tokens.keep(PASSAGES)
    store.wait_until_written()
    assert found(tokens, [*PASSAGES, "another"]) == as_lists(PASSAGES)


@given(st.dictionaries(st.text(), st.lists(st.integers(0, 2**31 - 1))))
def test_any_tokens_of_any_text_are_found_but_none_of_empty_ones(token_ids):
    whole = {text: PassageTokens(ids, whole_spans(text, ids)) for text, ids in token_ids.items()}
    store = Store(FINGERPRINT, TokenForm(2**31, CHUNK_SIZE), None, [FakeTier()])
    tokens = StoredTokens(store)
    tokens.keep(whole)
    store.close()
    assert found(tokens, list(token_ids)) == as_lists({text: each for text, each in whole.items() if each.token_ids})


def whole_spans(text, ids):
    return np.array([(0, len(text))] * -(-len(ids) // CHUNK_SIZE), np.int32).reshape(-1, 2)


def test_spans_beyond_the_passage_are_not_believed(store, tokens):
    passage, beyond = "Mara", PassageTokens([5], np.array([(0, 5)], np.int32))
    assert tokens.put({passage: beyond})
    assert tokens.find([passage]) == {}


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


def test_another_tokenizer_template_or_chunk_size_is_another_owner(tmp_path):
    file, template = tmp_path / "tokenizer.json", PromptTemplate()
    file.write_text("{}")
    first = fingerprint_tokenizer([file], template, 16)
    assert fingerprint_tokenizer([file], template, 16) == first
    others = [fingerprint_tokenizer([file], PromptTemplate("- "), 16), fingerprint_tokenizer([file], template, 8)]
    file.write_text("{ }")
    others.append(fingerprint_tokenizer([file], template, 16))
    assert len({first, *others}) == 4
