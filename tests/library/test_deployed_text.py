"""A server reads text as transformers does, without importing it."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from refrag.context.deployed import TEXT_FILE, DeployedText
from refrag.context.frame import Frame
from refrag.context.tokenizer import TextTokenizer
from refrag.errors import CheckpointError

FRAME = Frame([0], [0, 5], [7])
WORDS = ["it", "is", "n't", ".", "?", "!", ",", "'", "'s", "we", "'ve", "'re", "'m", "do", "[PAD]", "[UNK]"]


@pytest.fixture(scope="module")
def words():
    """A tokenizer of whole words, whose text transformers cleans up."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, "[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece("##", cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", clean_up_tokenization_spaces=True
    )


@pytest.fixture(scope="module")
def deployed(tiny_checkpoint, words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deployed")
    tokenizers = TextTokenizer.of(tiny_checkpoint.decoder_tokenizer), TextTokenizer.of(words)
    DeployedText(FRAME, 512, *tokenizers).save(folder)
    return DeployedText.load(folder)


@given(text=st.text(max_size=80), special=st.sampled_from(["", "<|eos|>", "<|bos|>"]))
def test_text_is_read_and_written_as_by_transformers(tiny_checkpoint, deployed, text, special):
    theirs, ours = tiny_checkpoint.decoder_tokenizer, deployed.decoder
    expected = theirs(text + special, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    [read] = ours.encode_with_offsets([text + special], special_tokens=False)
    assert ours.encode([text + special]) == [read.ids] == [expected.input_ids]
    assert read.offsets == expected.offset_mapping
    assert ours.decode([read.ids, [theirs.eos_token_id]]) == theirs.batch_decode([read.ids, [theirs.eos_token_id]])
    assert ours.decode([[theirs.eos_token_id]], skip_special_tokens=True) == [""]


@given(rows=st.lists(st.lists(st.integers(0, len(WORDS) - 1), max_size=12), min_size=1, max_size=3))
def test_decoded_text_loses_the_spaces_that_transformers_takes_out(words, deployed, rows):
    assert deployed.encoder.decode(rows) == words.batch_decode(rows)


def test_ids_and_sizes_stay(tiny_checkpoint, words, deployed):
    theirs = tiny_checkpoint.decoder_tokenizer
    assert (deployed.frame, deployed.vocab_size) == (FRAME, 512)
    assert (deployed.decoder.eos_id, deployed.decoder.pad_id) == (theirs.eos_token_id, theirs.pad_token_id)
    assert (deployed.encoder.pad_id, deployed.encoder.size) == (words.pad_token_id, len(words))


def test_the_encoder_has_none_of_its_own(tiny_checkpoint, tmp_path):
    DeployedText(FRAME, 512, TextTokenizer.of(tiny_checkpoint.decoder_tokenizer)).save(tmp_path)
    assert DeployedText.load(tmp_path).encoder is None


@pytest.mark.parametrize("content", [None, "{", '{"vocab_size": 3}', '{"decoder": {}, "encoder": null}'])
def test_what_an_export_did_not_write_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / TEXT_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=r"text\.json cannot be read: .*; run the export again"):
        DeployedText.load(tmp_path)


def test_reading_text_imports_neither_transformers_nor_torch():
    modules = "refrag.context.chunking, refrag.context.deployed"
    code = f"import sys, {modules}; print({{'torch', 'transformers'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
