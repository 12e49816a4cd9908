"""Spans of chunks lie in their passage, and hold the characters of the chunk's tokens and no others."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from refrag.config import PromptTemplate
from refrag.context.chunking import Chunker
from refrag.context.frame import Frame
from refrag.context.tokenizer import TextTokenizer

WORDS = "Ada keeps the harbour lamp and Odo plays the harp in the café of Ål while 12 ships wait".split()
CORPUS = [" ".join([*WORDS[number:], *WORDS[:number]]) for number in range(len(WORDS))]
TEXTS = st.text(st.sampled_from("aéx A\n\t.,🎵👩‍🚀ßﬁ️̈<|e0s|>中"), min_size=1, max_size=60) | st.text(min_size=1)
TEMPLATES = [PromptTemplate(), PromptTemplate("", "\n"), PromptTemplate("<doc> ", " </doc>\n")]


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|eos|>"], initial_alphabet=alphabet)
    return trained(tokenizer, trainer)


def with_byte_fallback():
    """Return a tokenizer like Llama's: a mark before each word, and bytes of characters that the vocabulary lacks."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<|eos|>", *(f"<0x{number:02X}>" for number in range(256))]
    return trained(tokenizer, trainers.BpeTrainer(vocab_size=400, special_tokens=special))


def pieces():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return trained(
        tokenizer, trainers.UnigramTrainer(vocab_size=80, special_tokens=["<unk>", "<|eos|>"], unk_token="<unk>")
    )


def words():
    """Return a tokenizer like BERT's, which drops what stands between words, accents and capitals."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return trained(tokenizer, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "<|eos|>"]))


def trained(tokenizer, trainer):
    trainer.show_progress = False
    tokenizer.train_from_iterator(CORPUS, trainer)
    return TextTokenizer(tokenizer)


@pytest.fixture(scope="module", params=[byte_level, with_byte_fallback, pieces, words], ids=lambda make: make.__name__)
def tokenizer(request):
    return request.param()


def chunker_of(tokenizer, config, template=None):
    changed = type(config)(**{**vars(config), "template": template or config.template, "chunk_size": 3})
    return Chunker(changed, Frame([], [], [], None, None), tokenizer)


@given(text=TEXTS, template=st.sampled_from(TEMPLATES))
@example(text="🎵🎵🎵 👩‍🚀", template=TEMPLATES[0])
@example(text="a    b     c  ", template=TEMPLATES[1])
@example(text="the <|eos|> of ﬁve", template=TEMPLATES[2])
def test_a_span_holds_the_characters_of_the_chunks_tokens_and_no_more(tiny_checkpoint, tokenizer, text, template):
    chunker = chunker_of(tokenizer, tiny_checkpoint.config, template)
    read = chunker.read_passages([text])
    spans, shift = read.spans, len(template.passage_prefix)
    assert len(spans) == len(read.chunks)
    assert (spans[:, 0] <= spans[:, 1]).all()
    assert spans.min(initial=0) >= 0 and spans.max(initial=0) <= len(text)
    [whole] = tokenizer.encode_with_offsets(
        [template.passage_prefix + text + template.passage_suffix], special_tokens=False
    )
    for number, (start, end) in enumerate(spans.tolist()):
        own = np.array(whole.offsets[3 * number : 3 * number + 3]) - shift
        characters = {place for first, last in np.clip(own, 0, len(text)) for place in range(first, last)}
        assert characters <= set(range(start, end))
        # What a tokenizer drops between two tokens lies inside; the ends are characters of tokens.
        is_inside = own.min() >= 0 and own.max() <= len(text)
        assert not (characters and is_inside) or {start, end - 1} <= characters


@given(text=TEXTS)
@example(text="🎵🎵🎵 👩‍🚀")
def test_a_span_read_again_holds_the_chunks_own_bytes(tiny_checkpoint, text):
    tokenizer = byte_level()
    chunker = chunker_of(tokenizer, tiny_checkpoint.config, PromptTemplate("", ""))
    read = chunker.read_passages([text])
    for chunk, (start, end) in zip(read.chunks, read.spans.tolist(), strict=True):
        expected = bytes_of(tokenizer, chunk.token_ids)
        [again] = tokenizer.encode([text[start:end]])
        # At most a character at either end is shared with the neighbour: up to three more bytes each.
        assert expected in bytes_of(tokenizer, again)
        assert len(bytes_of(tokenizer, again)) - len(expected) <= 6


def bytes_of(tokenizer, token_ids):
    """Return the bytes that byte-level tokens stand for, by the alphabet that GPT-2 made for them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [number for number in range(256) if number not in printable]
    alphabet = {chr(number): number for number in printable}
    alphabet |= {chr(256 + place): number for place, number in enumerate(others)}
    return bytes(alphabet[letter] for token_id in token_ids for letter in tokenizer.backend.id_to_token(token_id))


def test_the_templates_characters_are_in_no_span(tiny_checkpoint):
    chunker = chunker_of(byte_level(), tiny_checkpoint.config, TEMPLATES[2])
    assert chunker.read_passages(["x"]).spans.max() == 1
