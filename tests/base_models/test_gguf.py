"""GGUF files become ordinary Hugging Face folders that compute and tokenise the same."""

import copy
import stat

import pytest
import torch
from base_model_helpers import TEXTS, make_model, make_tokenizer, write_gguf
from transformers import AutoModelForCausalLM

from refrag.base_models.gguf import convert_gguf
from refrag.errors import CheckpointError
from refrag.model.checkpoint import load_plain_decoder
from refrag.model.tokenizers import load_tokenizer

NUMBERS = "In 1994 and 2026, 12,345.67 lamps."


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(len(tokenizer))


@pytest.fixture(scope="module")
def converted(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    convert_gguf(write_gguf(folder / "tiny.gguf", model, tokenizer), folder / "model")
    return folder / "model"


def test_it_computes_what_the_model_did_up_to_half_precision(converted, model):
    ids, rounded = torch.arange(3, 43)[None], copy.deepcopy(model)
    rounded.load_state_dict({name: weight.half() for name, weight in model.state_dict().items()})
    loaded = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32)
    assert AutoModelForCausalLM.from_pretrained(converted).dtype == torch.float16
    assert torch.allclose(loaded(input_ids=ids).logits, rounded(input_ids=ids).logits, atol=1e-5)


def test_it_keeps_tokens_digits_and_the_chat_template(converted, tokenizer):
    loaded = load_tokenizer(converted)
    for text in [*TEXTS, NUMBERS]:
        assert loaded(text).input_ids == tokenizer(text).input_ids
    chat = [{"role": "user", "content": NUMBERS}]
    assert loaded.apply_chat_template(chat, tokenize=False) == tokenizer.apply_chat_template(chat, tokenize=False)
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (1, 2, 2)


def test_digits_are_left_alone_where_the_file_does_not_say_smollm(model, tokenizer, tmp_path):
    convert_gguf(write_gguf(tmp_path / "tiny.gguf", model, tokenizer, pre="gpt-2"), tmp_path / "model")
    before = load_tokenizer(tmp_path / "model").backend_tokenizer.pre_tokenizer.pre_tokenize_str("in 1994")
    assert [piece for piece, _ in before] == ["in", "Ġ1994"]


def test_answers_end_where_the_tokenizer_says(converted):
    decoder = load_plain_decoder(converted)
    assert decoder.eos_ids == {2} and decoder.backbone.generation_config.bos_token_id == 1


def test_everybody_may_read_it(converted):
    assert {stat.S_IMODE(path.stat().st_mode) for path in converted.iterdir()} == {0o644}


def test_a_kind_that_transformers_cannot_read_is_refused_by_name(model, tokenizer, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", model, tokenizer, architecture="rwkv7")
    with pytest.raises(CheckpointError, match=r"tiny\.gguf is a GGUF of architecture 'rwkv7' that transformers cannot"):
        convert_gguf(path, tmp_path / "model")


def test_weights_that_are_not_there_are_not_made_up(model, tokenizer, tmp_path):
    lacking = make_model(len(tokenizer))
    del lacking.model.layers[1].mlp.up_proj
    path = write_gguf(tmp_path / "tiny.gguf", lacking, tokenizer)
    with pytest.raises(CheckpointError, match=r"no weights for model\.layers\.1\.mlp\.up_proj\.weight"):
        convert_gguf(path, tmp_path / "model")


def test_a_file_that_is_no_gguf_or_is_cut_off_is_refused(model, tokenizer, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", model, tokenizer)
    whole = path.read_bytes()
    damaged = whole.replace(b"llama", b"\xffla\xffa", 2)
    assert damaged != whole
    for content in (b"not a GGUF file at all, though as long", whole[:200], whole[: len(whole) // 2], damaged):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"tiny\.gguf is not a GGUF file|tiny\.gguf is a GGUF of"):
            convert_gguf(path, tmp_path / "model")


def test_a_tokenizer_of_another_size_than_the_weights_is_refused(tokenizer, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", make_model(300), tokenizer)
    with pytest.raises(CheckpointError, match="has a tokenizer of 312 tokens, but embeddings for 300"):
        convert_gguf(path, tmp_path / "model")
