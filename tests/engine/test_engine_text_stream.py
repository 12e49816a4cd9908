import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refrag.data.tokenizer import train_tokenizer
from refrag.engine.text_stream import TextStream

TOKENIZER = train_tokenizer(vocab_size=300, seed=0, num_documents=5)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def push_all(text, stop_words=()):
    """Push all tokens; return the pieces until the end or a stop word. Text that looks like a special token is text."""
    stream, pieces = TextStream(TOKENIZER, stop_words), []
    for token_id in TOKENIZER(text, split_special_tokens=True).input_ids:
        pieces.append(stream.push(token_id))
        if stream.stopped:
            return pieces
    return [*pieces, stream.flush()]


@given(TEXT)
def test_pieces_joined_are_the_text_whatever_its_characters(text):
    assert "".join(push_all(text)) == text


@given(TEXT)
def test_no_piece_holds_half_a_character(text):
    assert all("\ufffd" not in piece for piece in push_all(text.replace("\ufffd", "")))


@given(st.lists(st.integers(3, len(TOKENIZER) - 1), max_size=30))
def test_tokens_that_make_no_valid_text_lose_at_most_their_unfinished_end(token_ids):
    stream = TextStream(TOKENIZER, ())
    text = "".join([*(stream.push(token_id) for token_id in token_ids), stream.flush()])
    assert TOKENIZER.decode(token_ids).startswith(text.rstrip("\ufffd"))


@given(
    TEXT.filter(lambda text: "\ufffd" not in text), st.lists(TEXT.filter(lambda w: w and "\ufffd" not in w), max_size=3)
)
@example("0<0", ["<", "0<0"])
def test_the_text_ends_before_the_stop_word_that_is_complete_first(text, stop_words):
    ids = TOKENIZER(text).input_ids
    prefixes = [TOKENIZER.decode(ids[:count]) for count in range(len(ids) + 1)]
    stopped = next((prefix for prefix in prefixes if any(word in prefix for word in stop_words)), None)
    expected = text if stopped is None else stopped[: min(stopped.index(w) for w in stop_words if w in stopped)]
    assert "".join(push_all(text, stop_words)) == expected


@pytest.mark.parametrize("stop_word", ["s ever", "evening.", "evening", "."])
def test_a_stop_word_across_token_borders_is_never_sent(stop_word):
    text = "Odo Marsk plays every evening."
    assert "".join(push_all(text, [stop_word])) == text[: text.index(stop_word)]


def test_text_that_only_looked_like_a_stop_word_is_sent():
    assert "".join(push_all("a cat and", ["cats"])) == "a cat and"


def test_an_unfinished_stop_word_is_flushed_at_the_end():
    assert "".join(push_all("a ca", ["cats"])) == "a ca"
