"""Places of encoder tokens among the decoder's, for two tokenizers that cut the same text differently."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from refrag.context.alignment import FIRST_PLACE, UNPLACED, Aligner, own_places
from refrag.context.tokenizer import TextTokenizer

TEXTS = [
    "the keeper of 12 boats",
    "漢字 built the bridge",
    "“é” – 漢字 in the reeds",
    " a space first",
    "naïve\n\ncafé",
]


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return tiny_checkpoint.decoder_tokenizer


@pytest.fixture(scope="module")
def spaced():
    """Return a tokenizer like SentencePiece's: a word's token holds the space before it, which the first word loses."""
    words = ["▁the", "▁quick", "▁foxes", "▁run"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate([*words, "?", "▁a"])}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def expected_place(tokenizer, token_ids, start):
    """Return the first token by whose end the text goes beyond the character, found by decoding token after token."""
    return next(n for n in range(len(token_ids)) if len(tokenizer.decode(token_ids[: n + 1])) > start)


def places_of(tokenizer, token_ids):
    """Return the places of a text cut into single characters, between two special tokens."""
    text = tokenizer.decode(token_ids)
    offsets = [(0, 0), *((place, place + 1) for place in range(len(text))), (0, 0)]
    [places] = Aligner(TextTokenizer.of(tokenizer)).places([token_ids], [text], [offsets])
    assert places[0] == places[-1] == UNPLACED
    return (places[1:-1] - FIRST_PLACE).tolist()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("cut", [0, 1, 2])
def test_each_encoder_token_belongs_to_the_decoder_token_where_it_begins(tokenizer, text, cut):
    token_ids = tokenizer(text, add_special_tokens=False).input_ids[cut:]
    length = len(tokenizer.decode(token_ids))
    expected = [expected_place(tokenizer, token_ids, start) for start in range(length)]
    assert places_of(tokenizer, token_ids) == expected


def test_a_space_that_the_first_word_loses_moves_nothing(spaced):
    token_ids = spaced("quick foxes run", add_special_tokens=False).input_ids
    assert spaced.decode(token_ids) == "quick foxes run"
    assert places_of(spaced, token_ids) == [0] * 5 + [1] * 6 + [2] * 4


def test_padding_has_no_place(tokenizer):
    token_ids = tokenizer("boats", add_special_tokens=False).input_ids
    places = Aligner(TextTokenizer.of(tokenizer)).places(
        [token_ids, token_ids], ["boats", "boats"], [[(0, 5)], [(0, 2), (2, 5)]]
    )
    assert places.shape == (2, 2) and places[0, 1] == 0


def test_nothing_to_align_gives_nothing(tokenizer):
    assert Aligner(TextTokenizer.of(tokenizer)).places([], [], []).shape == (0, 0)
    assert Aligner(TextTokenizer.of(tokenizer)).places([()], [""], [[(0, 0)]]).tolist() == [[UNPLACED]]


def test_an_encoder_that_reads_the_decoders_tokens_has_their_places():
    assert own_places(np.array([[True, True], [True, False]])).tolist() == [[2, 3], [2, 0]]
