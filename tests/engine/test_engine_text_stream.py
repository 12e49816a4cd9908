import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from refrag.context.tokenizer import TextTokenizer
from refrag.data.tokenizer import train_tokenizer
from refrag.engine.text_stream import TextStream

TOKENIZER = train_tokenizer(vocab_size=300, seed=0, num_documents=5)
BYTES = [f"<0x{number:02X}>" for number in range(256)]
LETTERS = ["▁", *"abc"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def push_all(text, stop_words=()):
    """Push all tokens; return the pieces until the end or a stop word. Text that looks like a special token is text."""
    stream, pieces = TextStream(TOKENIZER, stop_words), []
    for token_id in TOKENIZER(text, split_special_tokens=True).input_ids:
        pieces.append(stream.push(token_id))
        if stream.stopped:
            return pieces
    return [*pieces, stream.flush()]


def byte_fallback():
    """Return a tokenizer like Llama's, whose decoder turns a run of bytes into text only if all of it is valid."""
    vocabulary = {token: number for number, token in enumerate([*BYTES, *LETTERS])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return TextTokenizer(tokenizer)


def push_tokens(tokens, stop_words=()):
    """Push tokens of the tokenizer with bytes by their names; return the text."""
    tokenizer = byte_fallback()
    stream = TextStream(tokenizer, stop_words)
    pieces = [stream.push(tokenizer.backend.token_to_id(token)) for token in tokens]
    return "".join([*pieces, stream.flush()])


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


def test_a_stray_byte_costs_no_text_before_or_after_it():
    assert push_tokens(["a", "<0xC3>", "<0xA9>", "<0xC3>", "▁", "b"]) == "aé\ufffd b"


def test_a_character_after_a_stray_byte_is_read_with_it():
    assert push_tokens(["<0xC3>", "<0xA9>", "<0xC3>", "<0xC3>", "<0xA9>", "a"]) == "é\ufffd\ufffd\ufffda"


def test_a_stop_word_after_a_stray_byte_ends_the_text():
    assert push_tokens(["<0xC3>", "<0xA9>", "<0xC3>", "a", "b", "c"], ["bc"]) == "é\ufffda"


@given(st.lists(st.sampled_from([*LETTERS, "<0xC3>", "<0xA9>", "<0xF0>", "<0x41>"])))
def test_no_letter_is_lost_whatever_bytes_stand_between(tokens):
    letters = [" " if token == "▁" else token for token in tokens if token in LETTERS]
    assert [character for character in push_tokens(tokens) if character in " abc"] == letters
