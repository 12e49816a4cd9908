"""An encoder whose vectors would depend on their batch, or not on all of their chunk, is refused by what it lacks."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from refrag.errors import CheckpointError
from refrag.model.checkpoint import load_encoder
from refrag.model.encoder import ChunkEncoder
from refrag.model.encoder_faults import encoder_fault

LENGTH = 12
SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "embedding_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    # Large enough that padding would show in a vector, and small enough that rounding does not.
    "initializer_range": 0.3,
}
SEQ2SEQ = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
SEQ2SEQ |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
PADDING = r"a chunk's vector changes with the padding behind it, by \d.*: attention_mask does not hide padding"
SEQ2SEQ_REASON = r"it is an encoder-decoder \(is_encoder_decoder\), whose last states are its decoder's"

GOOD = {
    "albert": {},
    "bert": {},
    "deberta-v2": {},
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "electra": {},
    "eurobert": {},
    "llama": {},
    "modernbert": {"local_attention": 4},
    "mpnet": {},
    "roberta": {},
    "squeezebert": {},
    "xlm-roberta": {},
}
REFUSED = {
    "bart": (SEQ2SEQ, SEQ2SEQ_REASON),
    "canine": ({}, PADDING),
    "convbert": ({}, PADDING),
    "fnet": ({}, PADDING),
    "led": (SEQ2SEQ, SEQ2SEQ_REASON),
    "mbart": (SEQ2SEQ, SEQ2SEQ_REASON),
    "nystromformer": ({}, PADDING),
    "t5": (T5, SEQ2SEQ_REASON),
    "xmod": ({}, "it cannot read tokens without more input than input_ids and attention_mask: Input language unknown"),
    "yoso": ({}, PADDING),
}


def make_encoder(family, pooling="mean", **shape):
    torch.manual_seed(0)
    backbone = AutoModel.from_config(AutoConfig.for_model(family, **{**SHAPE, **shape}))
    return ChunkEncoder(backbone, pooling).eval()


@pytest.mark.parametrize("family", GOOD)
def test_an_encoder_whose_vectors_are_those_of_their_chunks_is_good(family):
    encoder = make_encoder(family, **GOOD[family])
    assert encoder_fault(encoder, LENGTH) is None
    assert encoder_fault(encoder, length=1) is None


@pytest.mark.parametrize("family", REFUSED)
def test_an_encoder_that_is_none_is_refused_by_what_it_lacks(family):
    shape, reason = REFUSED[family]
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(encoder_fault(make_encoder(family, **shape), LENGTH))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_first_state_of_a_causal_model_is_no_vector_of_its_chunk(family):
    fault = encoder_fault(make_encoder(family, pooling="cls"), LENGTH)
    assert fault is not None
    assert "does not change with its last token: with pooling 'cls'" in fault
    assert encoder_fault(make_encoder(family, pooling="mean"), LENGTH) is None


def test_positions_for_fewer_tokens_than_a_chunk_may_have_are_told():
    """RoBERTa with max_position_embeddings 64 and padding 1 has positions for 62 tokens."""
    encoder = make_encoder("roberta")
    assert encoder_fault(encoder, length=62) is None
    fault = encoder_fault(encoder, length=63)
    assert fault is not None
    assert "it cannot read encoder_length = 63 tokens" in fault


def test_such_an_encoder_is_refused_when_its_checkpoint_is_loaded(tiny_checkpoint, tmp_path):
    tiny_checkpoint.save(tmp_path)
    make_encoder("fnet").backbone.save_pretrained(tmp_path / "encoder")
    with pytest.raises(CheckpointError, match=rf"encoder cannot be the encoder: {PADDING}"):
        load_encoder(tmp_path, tiny_checkpoint.config)
