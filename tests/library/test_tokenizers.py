"""A tokenizer is loaded by its file alone, and reads as the class of its model does."""

import pytest
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import AutoTokenizer, BertConfig, BertTokenizer, GPT2Config, GPT2Tokenizer

from refrag.errors import CheckpointError
from refrag.model.tokenizers import load_decoder_tokenizer, load_encoder_tokenizer, load_tokenizer

TEXTS = ["Mara Tolen keeps a parrot.", "  two  spaces, naïve “quotes” and 12,345\n", "[SEP] <|endoftext|> stay"]


def save_word_piece(folder):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "mara", "parrot", "keeps", "a", ".", "##s", "t", "##o"]
    backend = Tokenizer(WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer, backend.decoder = (
        BertNormalizer(),
        BertPreTokenizer(),
        WordPieceDecoder(),
    )
    BertTokenizer(tokenizer_object=backend).save_pretrained(folder)
    BertConfig(vocab_size=len(words)).save_pretrained(folder)


def save_byte_pairs(folder):
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(TEXTS * 5, vocab_size=300, show_progress=False, special_tokens=["<|endoftext|>"])
    GPT2Tokenizer(tokenizer_object=trained._tokenizer).save_pretrained(folder)
    GPT2Config().save_pretrained(folder)


@pytest.mark.parametrize("save", [save_word_piece, save_byte_pairs])
def test_it_reads_as_the_class_of_its_model_does(save, tmp_path):
    save(tmp_path)
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for options in ({}, {"add_special_tokens": False, "split_special_tokens": True}):
        assert ours(TEXTS, **options).input_ids == theirs(TEXTS, **options).input_ids
    ids = theirs(TEXTS[0], add_special_tokens=False).input_ids
    assert ours.decode(ids) == theirs.decode(ids)
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
    )


def test_an_encoder_without_its_own_has_none(tmp_path):
    (tmp_path / "encoder").mkdir()
    assert load_encoder_tokenizer(tmp_path) is None


@pytest.mark.parametrize(("content", "message"), [(None, "has no tokenizer.json"), ("{", "cannot be loaded")])
def test_a_folder_without_a_tokenizer_says_so(tmp_path, content, message):
    (tmp_path / "decoder").mkdir()
    if content:
        (tmp_path / "decoder" / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load_decoder_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="is missing"):
        load_tokenizer(tmp_path / "nowhere")
