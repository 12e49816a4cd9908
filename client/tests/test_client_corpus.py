"""A folder of text files as passages, and the search among them."""

import builtins

import pytest

from refrag_client import Corpus, InvalidRequest, RefragError
from refrag_client.corpus import cut_text, read_folder

BRIDGE = "Ana Korvin built the bridge over the Lurd."
MILL = "The mill of Harrow burned down in 1911."


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "town").mkdir()
    (tmp_path / "town" / "river.md").write_text(f"{BRIDGE}\n\nA ferry crossed before.", encoding="utf-8")
    (tmp_path / "mill.TXT").write_text(MILL, encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    return tmp_path


def test_the_best_passage_comes_first_under_its_files_name(folder):
    passages = Corpus.read(folder).search("Who built the bridge?")
    assert passages[0] == f"town/river.md\n{BRIDGE}\nA ferry crossed before."


def test_what_shares_no_word_with_the_question_is_not_found(folder):
    corpus = Corpus.read(folder)
    assert corpus.search("When did the mill burn?") == [f"mill.TXT\n{MILL}"]
    assert corpus.search("xylophone") == []


def test_a_search_gives_at_most_as_many_as_asked_for():
    corpus = Corpus([f"tide number {number}" for number in range(30)])
    assert len(corpus.search("tide", 4)) == 4
    assert len(corpus.search("tide", 100)) == 30
    with pytest.raises(InvalidRequest, match="num_passages is 0"):
        corpus.search("tide", 0)


def test_paragraphs_are_joined_up_to_the_limit_and_never_cut_within_it():
    text = "one two three\n\nfour five\n\nsix seven eight nine"
    assert list(cut_text(text, 5)) == ["one two three\nfour five", "six seven eight nine"]


def test_a_long_paragraph_is_cut_between_sentences_and_a_long_sentence_between_words():
    assert list(cut_text("One two three. Four five six. Seven.", 4)) == ["One two three.", "Four five six.\nSeven."]
    assert list(cut_text("a b c d e", 2)) == ["a b", "c d", "e"]


def test_no_word_is_lost():
    text = " ".join(f"word{number}{'.' if number % 13 == 0 else ''}" for number in range(1000))
    text = text.replace("word500", "\r\n\r\nword500")
    assert " ".join(cut_text(text, 50)).split() == text.split()


def test_a_folder_that_is_none_or_has_no_text_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="is not a folder"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(InvalidRequest, match="holds no text"):
        read_folder(tmp_path)


@pytest.mark.parametrize("passages", [[], ["", " "], ["the", "of it"]])
def test_a_corpus_without_a_word_to_search_for_is_refused(passages):
    with pytest.raises(InvalidRequest, match="no word that can be searched for"):
        Corpus(passages)


def test_a_file_that_is_not_utf_8_is_named(folder):
    (folder / "latin.txt").write_bytes("Käse".encode("latin-1"))
    with pytest.raises(InvalidRequest, match=r"latin\.txt is not UTF-8 at byte 1"):
        read_folder(folder)


def test_without_bm25s_the_extra_is_named(monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **options):
        if name == "bm25s":
            raise ModuleNotFoundError(name="bm25s")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RefragError, match=r"refrag-client\[corpus\]"):
        Corpus(["a tide"])
