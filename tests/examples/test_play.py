"""The page's corpus: a collection that follows the files of one folder."""

from pathlib import Path

import pytest

pytest.importorskip("lancedb")
from examples.play import DELETED_AT_ONCE, index, name_of, with_advice
from refrag.errors import InvalidRequest
from refrag.retrieval.base import PassageEncoderIdentity
from refrag.retrieval.lance import require_encoder
from refrag.retrieval.lance_writer import NAME
from refrag_client import Document, Overloaded
from refrag_client import InvalidRequest as RefusedRequest


class Collections:
    """Collections in memory, which fail once they have taken `num_calls` calls that add documents."""

    def __init__(self):
        self.ids, self.num_calls = {}, float("inf")

    def index(self, collection, documents):
        if not self.num_calls:
            raise Overloaded("try again later")
        self.num_calls -= 1
        self.ids.setdefault(collection, set()).update(document.id for document in documents)

    def delete(self, collection, ids):
        assert 1 <= len(ids) <= DELETED_AT_ONCE
        self.ids[collection] -= set(ids)

    def optimize(self, collection):
        assert collection in self.ids


def documents_of(source, count):
    return [Document(f"{source}#{number}", "text") for number in range(count)]


def test_what_a_corpus_has_no_more_leaves_the_collection(tmp_path):
    collections = Collections()
    for counts in ({"kept": 3, "removed": 2000, "shortened": 9}, {"kept": 3, "shortened": 4}, {"other": 1}):
        documents = [each for source, count in counts.items() for each in documents_of(source, count)]
        index(collections, "notes", documents, tmp_path / "notes.json")
        assert collections.ids == {"notes": {document.id for document in documents}}


def test_what_a_run_that_broke_off_has_added_and_left_is_removed_by_the_next(tmp_path):
    collections, record = Collections(), tmp_path / "notes.json"
    index(collections, "notes", documents_of("old", 10), record)
    collections.num_calls = 1
    with pytest.raises(Overloaded):
        index(collections, "notes", documents_of("new", 100), record)
    collections.num_calls = float("inf")
    index(collections, "notes", documents_of("new", 5), record)
    assert collections.ids == {"notes": {f"new#{number}" for number in range(5)}}


@pytest.mark.parametrize(
    ("path", "readable"),
    [
        ("/a/docs", "docs-"),
        ("/a/My notes (2025)", "My-notes-2025-"),
        ("/a/.config", "config-"),
        ("/a/写", "corpus-"),
        ("/", "corpus-"),
        ("/a/" + "x" * 200, "x" * 64 + "-"),
    ],
)
def test_a_collection_is_named_after_its_folder(path, readable):
    name = name_of(Path(path))
    assert name[:-8] == readable
    assert NAME.fullmatch(name)


def test_folders_of_one_name_have_collections_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert name_of(Path("/a/docs")) != name_of(Path("/b/docs"))
    assert name_of(Path("docs")) == name_of(tmp_path / "docs" / ".")


def test_to_start_anew_is_advised_where_another_encoder_made_the_vectors():
    with pytest.raises(InvalidRequest) as refused:
        require_encoder("notes", "", PassageEncoderIdentity("a" * 32, 16), "")
    advised = with_advice(RefusedRequest(str(refused.value)), Path("play"))
    assert str(advised) == f"{refused.value}; or remove play, which starts anew"


def test_what_starting_anew_does_not_mend_is_told_as_it_is():
    assert str(with_advice(RefusedRequest("documents[0] has no text"), Path("play"))) == "documents[0] has no text"
