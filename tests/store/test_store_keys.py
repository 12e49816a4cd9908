"""A vector is found again by the tokens and the encoder that it belongs to, and by no other."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refrag.config import RefragConfig
from refrag.errors import CheckpointError
from refrag.store.keys import EncoderIdentity, digest_chunks, fingerprint_encoder

CONFIG = RefragConfig(chunk_size=16, trained_chunk_sizes=[16], max_prompt_slots=512, encoder_length=16)


@pytest.fixture
def encoder(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return [path]


@pytest.mark.parametrize(
    "changed",
    [{"chunk_size": 8}, {"encoder_length": 32}, {"pooling": "cls"}],
    ids=lambda changed: next(iter(changed)),
)
def test_what_changes_the_vectors_changes_the_fingerprint(encoder, changed):
    before = fingerprint_encoder(encoder, [], CONFIG, "fp32")
    assert fingerprint_encoder(encoder, [], replace(CONFIG, **changed), "fp32") != before


def test_weights_precision_and_tokenizer_are_in_the_fingerprint(encoder, tmp_path):
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    fingerprints = {
        fingerprint_encoder(encoder, [], CONFIG, "fp32"),
        fingerprint_encoder(encoder, [], CONFIG, "fp16"),
        fingerprint_encoder(encoder, [tokenizer], CONFIG, "fp32"),
    }
    encoder[0].write_bytes(b"Weights")
    fingerprints.add(fingerprint_encoder(encoder, [], CONFIG, "fp32"))
    assert len(fingerprints) == 4


def test_what_does_not_change_the_vectors_does_not_either(encoder):
    other = replace(CONFIG, max_prompt_slots=1024, expand_fraction=0.5, provenance={"run": 2})
    assert fingerprint_encoder(encoder, [], other, "fp32") == fingerprint_encoder(encoder, [], CONFIG, "fp32")


def test_a_fingerprint_is_read_as_it_was_written(tmp_path):
    encoder = EncoderIdentity(b"0123456789abcdef", width=24)
    encoder.save(tmp_path)
    assert EncoderIdentity.load(tmp_path) == encoder


def test_an_export_without_one_says_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match="run the export again"):
        EncoderIdentity.load(tmp_path)


@given(arrays(np.int32, st.tuples(st.integers(0, 6), st.just(4)), elements=st.integers(-1, 3)))
def test_chunks_have_one_digest_if_and_only_if_they_have_the_same_tokens(token_ids):
    digests = digest_chunks(token_ids)
    assert len(digests) == len(token_ids)
    rows = [tuple(row) for row in token_ids.tolist()]
    assert len(set(zip(digests, rows, strict=True))) == len(set(digests)) == len(set(rows))
