"""A server reads text as transformers does, without importing it."""

import copy
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from refrag.context.deployed import DECODER, FRAME_FILE, TEXT_FILE, DeployedFrame, DeployedTokenizers
from refrag.context.frame import Frame
from refrag.context.tokenizer import CLEANS_UP_BYTE_PAIRS, TextTokenizer
from refrag.errors import CheckpointError

FRAME = DeployedFrame(Frame([0], [0, 5], [7], [8], None), vocab_size=512)
WORDS = ["it", "is", "n't", ".", "?", "!", ",", "'", "'s", "we", "'ve", "'re", "'m", "do", "[PAD]", "[UNK]"]


@pytest.fixture(scope="module")
def words():
    """Return a tokenizer of whole words, whose text transformers cleans up."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, "[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece("##", cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", clean_up_tokenization_spaces=True
    )


@pytest.fixture(scope="module")
def deployed(tiny_checkpoint, words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deployed")
    tokenizers = TextTokenizer.of(tiny_checkpoint.decoder_tokenizer), TextTokenizer.of(words)
    DeployedTokenizers(*tokenizers).save(folder)
    return DeployedTokenizers.load(folder)


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
    assert (deployed.decoder.eos_id, deployed.decoder.pad_id) == (theirs.eos_token_id, theirs.pad_token_id)
    assert (deployed.encoder.pad_id, deployed.encoder.size) == (words.pad_token_id, len(words))


def test_byte_pairs_keep_their_spaces_unless_their_tokenizer_insists(tiny_checkpoint):
    tokenizer = copy.deepcopy(tiny_checkpoint.decoder_tokenizer)
    tokenizer.clean_up_tokenization_spaces = True
    assert not TextTokenizer.of(tokenizer).cleans_up
    setattr(tokenizer, CLEANS_UP_BYTE_PAIRS, True)
    ids = tokenizer("it is .", add_special_tokens=False).input_ids
    assert TextTokenizer.of(tokenizer).decode([ids]) == tokenizer.batch_decode([ids]) == ["it is."]


def test_the_encoder_has_none_of_its_own(tiny_checkpoint, tmp_path):
    DeployedTokenizers(TextTokenizer.of(tiny_checkpoint.decoder_tokenizer)).save(tmp_path)
    assert DeployedTokenizers.load(tmp_path).encoder is None


def test_the_frame_stays(tmp_path):
    FRAME.save(tmp_path)
    assert DeployedFrame.load(tmp_path) == FRAME


@pytest.mark.parametrize("content", [None, "{", '{"vocab_size": 3}', "[]", '{"vocab_size": 3, "frame": {"other": 1}}'])
@pytest.mark.parametrize("kind, name", [(DeployedFrame, FRAME_FILE), (DeployedTokenizers, f"{DECODER}/{TEXT_FILE}")])
def test_what_an_export_did_not_write_is_refused(kind, name, content, tmp_path):
    (tmp_path / DECODER).mkdir()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=r"cannot be read: .*; run the export again"):
        kind.load(tmp_path)


def test_reading_text_imports_neither_transformers_nor_torch():
    modules = "refrag.context.chunking, refrag.context.deployed"
    code = f"import sys, {modules}; print({{'torch', 'transformers'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
