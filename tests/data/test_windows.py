import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from refrag.data.sources import TextSource
from refrag.data.windows import WindowStream, heldout_windows, token_ids
from refrag.errors import TrainingError

EOS = "<|eos|>"
texts = st.lists(st.text("abc", min_size=1, max_size=30), min_size=1, max_size=8)
lengths = st.lists(st.integers(1, 12), min_size=1, max_size=25)


def make_tokenizer(eos_token=EOS):
    """Return a tokenizer that makes each byte a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos_token, model_max_length=8)


TOKENIZER = make_tokenizer()
EOS_ID = TOKENIZER.eos_token_id


class ListDocuments:
    """The texts of a list, again and again."""

    def __init__(self, texts):
        self.texts = texts
        self.position = 0

    def draw(self):
        self.position += 1
        return self.texts[(self.position - 1) % len(self.texts)]

    def state(self):
        return {"position": self.position}

    def restore(self, state):
        self.position = state["position"]


def open_windows(texts, num_tokens=5):
    return WindowStream(ListDocuments(texts), TOKENIZER, num_tokens)


def as_text(window):
    return TOKENIZER.decode(window)


def test_a_document_that_fills_windows_is_cut_into_them_and_rests_are_joined():
    stream = open_windows(["abcdefghijkl", "mnopqrst"])
    windows = [as_text(stream.draw()) for _ in range(7)]
    assert windows == ["abcde", "fghij", "mnopq", "abcde", "fghij", f"kl{EOS}rs", "mnopq"]


def test_short_documents_are_joined_with_eos_in_between():
    assert as_text(open_windows(["ab", "cd", "ef"], num_tokens=8).draw()) == f"ab{EOS}cd{EOS}ef"


def test_a_joined_window_never_begins_with_eos():
    stream = open_windows(["ab", "cdef"], num_tokens=2)
    assert EOS_ID not in {stream.draw(3)[0] for _ in range(50)}


@given(texts, lengths)
def test_a_window_is_as_long_as_it_was_asked_to_be(texts, lengths):
    stream = open_windows(texts)
    assert [len(stream.draw(length)) for length in lengths] == lengths


@given(texts, lengths)
def test_no_token_is_lost_or_given_twice(texts, lengths):
    documents = ListDocuments(texts)
    stream = WindowStream(documents, TOKENIZER, 5)
    windows = [window for length in lengths for window in stream.draw(length)]
    drawn = "".join(texts[place % len(texts)] for place in range(documents.position))
    state = stream.state()
    last = texts[(documents.position - 1) % len(texts)]
    given_or_kept = windows + state["carried_ids"] + token_ids(last[state["offset"] :], TOKENIZER)
    assert sorted(as_text([one for one in given_or_kept if one != EOS_ID])) == sorted(drawn)


@given(texts, lengths, lengths)
def test_a_restored_stream_gives_the_very_next_token(texts, before, after):
    stream, resumed = open_windows(texts), open_windows(texts)
    for length in before:
        stream.draw(length)
    resumed.restore(json.loads(json.dumps(stream.state())))
    assert resumed.state() == stream.state()
    assert [resumed.draw(length) for length in after] == [stream.draw(length) for length in after]


def test_a_fresh_stream_can_be_restored_too():
    stream, resumed = open_windows(["abc", "de"]), open_windows(["abc", "de"])
    resumed.restore(stream.state())
    assert [resumed.draw() for _ in range(5)] == [stream.draw() for _ in range(5)]


def test_a_stream_refuses_to_go_on_in_a_document_that_became_shorter():
    stream = open_windows(["abcdefgh"])
    stream.draw()
    with pytest.raises(TrainingError, match="token 5 of a document that now has 3"):
        open_windows(["abc"]).restore(stream.state())


def test_a_window_has_tokens():
    with pytest.raises(TrainingError, match="a window of 0 tokens"):
        open_windows(["abc"]).draw(0)


def test_text_that_spells_a_special_token_stays_text():
    assert EOS_ID not in token_ids(f"a{EOS}b", TOKENIZER)
    assert as_text(token_ids(f"a{EOS}b", TOKENIZER)) == f"a{EOS}b"


def test_a_document_longer_than_the_model_is_no_reason_to_warn(caplog):
    assert len(token_ids("a" * 100, make_tokenizer())) == 100
    assert not caplog.records


def test_a_tokenizer_without_eos_is_refused():
    with pytest.raises(TrainingError, match="no EOS token"):
        WindowStream(ListDocuments(["abc"]), make_tokenizer(eos_token=None), 5)


@pytest.fixture(scope="module")
def heldout_source(tmp_path_factory):
    """Return two hundred documents of 10 to 59 letters, each of which occurs in that document alone."""
    path = tmp_path_factory.mktemp("heldout") / "documents.jsonl"
    letters = (chr(number) for number in range(0x4E00, 0x9FFF))
    path.write_text("".join(json.dumps("".join(next(letters) for _ in range(10 + n % 50))) + "\n" for n in range(200)))
    return TextSource(kind="jsonl", path=str(path))


def test_held_out_windows_are_the_same_in_every_run_and_others_with_another_seed(heldout_source):
    def windows(seed):
        return heldout_windows(heldout_source, TOKENIZER, 30, 5, seed)

    assert windows(1) == windows(1) != windows(2)


def test_held_out_windows_share_no_letter_and_lie_within_one_document(heldout_source):
    windows = heldout_windows(heldout_source, TOKENIZER, 30, 10, seed=0)
    assert all(len(window) == 30 and EOS_ID not in window for window in windows)
    # Three bytes, three tokens, are a letter, so that 30 tokens from a document's start are ten whole letters.
    seen = [letter for window in windows for letter in as_text(window)]
    assert len(seen) == len(set(seen)) == 100
    assert all(ord(right) == ord(left) + 1 for window in windows for left, right in pairwise(as_text(window)))


def test_windows_are_joined_where_single_documents_do_not_suffice(heldout_source):
    windows = heldout_windows(heldout_source, TOKENIZER, 171, 6, seed=0)
    assert all(len(window) == 171 for window in windows)
    assert any(EOS_ID in window for window in windows)


def test_too_few_held_out_windows_are_counted(heldout_source):
    with pytest.raises(TrainingError, match=r"500 held-out windows of 150 tokens .* has \d+;"):
        heldout_windows(heldout_source, TOKENIZER, 150, 500, seed=0)
