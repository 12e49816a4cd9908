"""Places of encoder tokens among the decoder's, for two tokenizers that cut the same text differently."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from refrag.context.alignment import FIRST_PLACE, UNPLACED, Aligner, own_places


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return tiny_checkpoint.decoder_tokenizer


def test_each_encoder_token_belongs_to_the_decoder_token_where_it_begins(tokenizer):
    token_ids = tokenizer("the keeper of 12 boats", add_special_tokens=False).input_ids
    text = tokenizer.decode(token_ids)
    words = PreTrainedTokenizerFast(tokenizer_object=word_tokenizer(text))
    offsets = words(text, return_offsets_mapping=True).offset_mapping
    [places] = Aligner(tokenizer).places([token_ids], [[(0, 0), *offsets, (0, 0)]])
    assert places[0] == places[-1] == UNPLACED
    for (start, _), place in zip(offsets, places[1:-1], strict=True):
        before = len(tokenizer.decode(token_ids[: place - FIRST_PLACE]))
        assert before <= start < before + len(tokenizer.decode([token_ids[place - FIRST_PLACE]]))


def test_padding_has_no_place(tokenizer):
    token_ids = tokenizer("boats", add_special_tokens=False).input_ids
    places = Aligner(tokenizer).places([token_ids, token_ids], [[(0, 5)], [(0, 2), (2, 5)]])
    assert places.shape == (2, 2) and places[0, 1] == 0


def test_a_chunk_that_begins_inside_a_character_keeps_its_places(tokenizer):
    token_ids = tokenizer("“é” – 漢字", add_special_tokens=False).input_ids[1:]
    text = tokenizer.decode(token_ids)
    offsets = [(place, place + 1) for place in range(len(text))]
    [places] = Aligner(tokenizer).places([token_ids], [offsets])
    assert (np.diff(places) >= 0).all() and places.max() < FIRST_PLACE + len(token_ids)


def test_nothing_to_align_gives_nothing(tokenizer):
    assert Aligner(tokenizer).places([], []).shape == (0, 0)
    assert Aligner(tokenizer).places([()], [[(0, 0)]]).tolist() == [[UNPLACED]]


def test_an_encoder_that_reads_the_decoders_tokens_has_their_places():
    assert own_places(np.array([[True, True], [True, False]])).tolist() == [[2, 3], [2, 0]]


def word_tokenizer(text: str) -> Tokenizer:
    vocabulary = {word: number for number, word in enumerate(sorted({*text.split(), "?"}))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer
