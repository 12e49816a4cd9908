"""Collections in the real engine: its searches are those of a slow reference, and its changes are whole."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from retrieval_helpers import ENCODER, WORDS, Corpus, ids, query, unit

from refrag.errors import InvalidRequest, Overloaded
from refrag.retrieval.base import Document, PassageEncoderIdentity
from refrag.retrieval.fusion import fuse_rankings

pytest.importorskip("lancedb")
from refrag.retrieval.lance import LanceReader
from refrag.retrieval.lance_writer import LanceWriter


@pytest.mark.parametrize("is_optimised", [False, True])
def test_every_mode_finds_what_the_slow_reference_finds(writer, reader, is_optimised):
    corpus, rng = Corpus(120), np.random.default_rng(1)
    writer.upsert("words", corpus.documents, corpus.vectors)
    if is_optimised:
        writer.optimize("words")
    for question in (" ".join(WORDS[start : start + 4]) for start in range(0, 40, 8)):
        [vector] = unit(rng, 1)
        by_words, by_vectors = corpus.rank_by_words(question), corpus.rank_by_vectors(vector)
        found = reader.search("words", query(question, num_passages=20, mode="text"))
        assert [(hit.id, pytest.approx(hit.score, rel=1e-4)) for hit in found] == by_words[:20]
        found = reader.search("words", query(question, vector, 20, mode="dense"))
        assert [(hit.id, pytest.approx(hit.score, abs=1e-5)) for hit in found] == by_vectors[:20]
        fused = fuse_rankings([[each for each, _ in ranking[:50]] for ranking in (by_words, by_vectors)])
        found = reader.search("words", query(question, vector, 20))
        assert [(hit.id, pytest.approx(hit.score)) for hit in found] == fused[:20]


def test_filters_choose_before_the_best_are_taken(writer, reader):
    corpus = Corpus(100)
    writer.upsert("words", corpus.documents, corpus.vectors)
    [vector] = unit(np.random.default_rng(1), 1)
    odd = [each for each, _ in corpus.rank_by_vectors(vector) if int(each[1:]) % 2]
    assert ids(reader.search("words", query("", vector, 30, "dense", '{"half": 1}'))) == odd[:30]
    found = reader.search("words", query(WORDS[0], vector, 30, "hybrid", '{"name": ["n3", "n8"], "half": {"lt": 1}}'))
    assert ids(found) == ["p008"]
    assert found[0].metadata == {"half": 0, "name": "n8"}


def test_an_upsert_replaces_by_id_and_passes_over_what_has_not_changed(writer, reader):
    corpus = Corpus(20)
    writer.upsert("words", corpus.documents, corpus.vectors)
    changed = Document("p003", "quite another text", metadata={"half": 1, "name": "n3", "new": True})
    documents = [*corpus.documents[:3], changed, *corpus.documents[4:], Document("p999", "a newcomer")]
    to_write = writer.find_changed("words", documents)
    assert ids(to_write) == ["p003", "p999"]
    writer.upsert("words", to_write, unit(np.random.default_rng(2), 2))
    assert writer.find_changed("words", documents) == []
    assert reader.describe("words").num_passages == 21
    assert sorted(ids(reader.search("words", query("another newcomer", mode="text")))) == ["p003", "p999"]
    assert ids(reader.search("words", query("another newcomer", mode="text", filter='{"new": true}'))) == ["p003"]


def test_of_no_documents_none_has_changed(writer):
    assert writer.find_changed("words", []) == []
    corpus = Corpus(2)
    writer.upsert("words", corpus.documents, corpus.vectors)
    assert writer.find_changed("words", []) == []


def test_what_is_deleted_is_found_no_more(writer, reader):
    corpus = Corpus(20)
    writer.upsert("words", corpus.documents, corpus.vectors)
    assert writer.delete("words", ["p001", "p002", "it's not there"]) == 2
    found = reader.search("words", query("", corpus.vectors[1], 20, "dense"))
    assert len(found) == 18 and not {"p001", "p002"}.intersection(ids(found))
    writer.drop("words")
    assert reader.names() == []
    writer.upsert("words", corpus.documents[:2], corpus.vectors[:2])
    assert ids(reader.search("words", query("", corpus.vectors[1], 20, "dense"))) == ["p001", "p000"]


def test_many_small_changes_are_tidied_up_on_the_way(writer, reader, monkeypatch):
    monkeypatch.setattr("refrag.retrieval.lance_writer.CHANGES_BETWEEN_OPTIMIZE", 4)
    corpus = Corpus(40)
    for number in range(40):
        writer.upsert("words", corpus.documents[number : number + 1], corpus.vectors[number : number + 1])
    assert reader.describe("words").num_passages == 40
    assert writer._find("words").stats()["fragment_stats"]["num_fragments"] < 10


def test_a_deployment_without_passage_encoder_searches_by_words(address):
    writer, reader = LanceWriter(address, None), LanceReader(address, None)
    corpus = Corpus(30)
    writer.upsert("words", corpus.documents, None)
    writer.close()
    expected = [each for each, _ in corpus.rank_by_words(WORDS[0])]
    assert ids(reader.search("words", query(WORDS[0], num_passages=30))) == expected
    with pytest.raises(InvalidRequest, match="search_mode is 'dense', and this server has no passage encoder"):
        reader.search("words", query(WORDS[0], mode="dense"))


def test_another_encoders_collection_is_neither_searched_nor_changed(writer, address):
    corpus = Corpus(5)
    writer.upsert("words", corpus.documents, corpus.vectors)
    writer.close()
    other = PassageEncoderIdentity("b" * 32, 16)
    with pytest.raises(InvalidRequest, match=f"indexed with the passage encoder {'a' * 32}, and this server has"):
        LanceReader(address, other).search("words", query(WORDS[0], corpus.vectors[0]))
    assert LanceReader(address, other).search("words", query(corpus.documents[0].text, mode="text"))
    with pytest.raises(InvalidRequest, match="index it again under another name"):
        LanceWriter(address, other).upsert("words", corpus.documents, corpus.vectors)
    with pytest.raises(InvalidRequest, match="this server has no passage encoder"):
        LanceWriter(address, None).find_changed("words", corpus.documents)


def test_an_unknown_collection_is_told_with_those_that_there_are(writer, reader):
    with pytest.raises(InvalidRequest, match="there is none yet; make one by `refrag index --collection`"):
        reader.search("nothing", query("x", mode="text"))
    writer.upsert("words", Corpus(2).documents, Corpus(2).vectors)
    for ask in (
        lambda: reader.search("nothing", query("x", mode="text")),
        lambda: writer.delete("nothing", ["a"]),
        lambda: writer.drop("nothing"),
    ):
        with pytest.raises(InvalidRequest, match="there is no collection 'nothing'; there are words"):
            ask()


@pytest.mark.parametrize("name", ["", "../up", "a/b", "é", ".hidden", "x" * 129])
def test_a_name_that_is_no_file_name_everywhere_is_refused(writer, name):
    with pytest.raises(InvalidRequest, match="collection is"):
        writer.upsert(name, Corpus(1).documents, Corpus(1).vectors)


def test_a_field_of_two_types_is_told_with_the_document(writer):
    writer.upsert("words", [Document("a", "x", metadata={"year": 1})], Corpus(1).vectors)
    with pytest.raises(InvalidRequest, match="document 'b' has \"two\" in the field 'year', whose values are of type"):
        writer.upsert("words", [Document("b", "y", metadata={"year": "two"})], Corpus(1).vectors)


def test_an_integer_beyond_doubles_comes_back_exactly_and_is_compared_as_a_double(writer, reader):
    large = 2**53 + 1
    documents = [Document("a", "x", metadata={"number": large}), Document("b", "y", metadata={"number": 1})]
    writer.upsert("words", documents, Corpus(2).vectors)
    for asked in (large, large - 1):
        [found] = reader.search("words", query("x", mode="text", filter=f'{{"number": {asked}}}'))
        assert found.metadata == {"number": large}


def test_a_second_writer_is_sent_away_until_the_first_is_gone(writer, address):
    corpus = Corpus(2)
    writer.upsert("words", corpus.documents, corpus.vectors)
    second = LanceWriter(address, ENCODER)
    with pytest.raises(Overloaded, match="another server writes to these collections"):
        second.upsert("words", corpus.documents, corpus.vectors)
    writer.close()
    second.upsert("words", corpus.documents, corpus.vectors)
    second.close()


def test_a_writer_that_takes_over_knows_what_the_first_has_done(writer, address):
    corpus = Corpus(2)
    writer.upsert("words", corpus.documents, corpus.vectors)
    writer.upsert("gone", corpus.documents, corpus.vectors)
    second = LanceWriter(address, ENCODER)
    assert second.find_changed("words", corpus.documents) == second.find_changed("gone", corpus.documents) == []
    writer.delete("words", ["p000"])
    writer.drop("gone")
    writer.close()
    assert [each.id for each in second.find_changed("words", corpus.documents)] == ["p000"]
    assert second.find_changed("gone", corpus.documents) == corpus.documents
    second.upsert("gone", corpus.documents, corpus.vectors)
    assert second.find_changed("gone", corpus.documents) == []
    second.close()


WRITER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from retrieval_helpers import ENCODER, Corpus
from refrag.retrieval.lance_writer import LanceWriter
import refrag.retrieval.lance_writer as module
module.CHANGES_BETWEEN_OPTIMIZE = 3
writer, corpus = LanceWriter(sys.argv[1], ENCODER), Corpus(600)
for start in range(0, 600, 10):
    rows = slice(start, start + 10)
    if changed := writer.find_changed("words", corpus.documents[rows]):
        writer.upsert("words", changed, corpus.vectors[rows])
    print(start + 10, flush=True)
"""


class WriterProcess:
    """A process that indexes six hundred passages, and tells how many are committed."""

    def __init__(self, address):
        folder = str(Path(__file__).parent)
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, address, folder], stdout=subprocess.PIPE, text=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def read(self):
        line = self.process.stdout.readline()
        assert line, "the writer has ended"
        return int(line)


def test_a_writer_killed_in_the_middle_loses_nothing_it_has_told_and_another_goes_on(address, reader):
    num_told = 0
    for target in (50, 300):
        with WriterProcess(address) as writer:
            while num_told < target:
                num_told = writer.read()
            writer.process.send_signal(signal.SIGKILL)
        assert reader.describe("words").num_passages >= num_told
    corpus = Corpus(600)
    with WriterProcess(address) as writer:
        while writer.read() < 600:
            pass
    found = reader.search("words", query("", corpus.vectors[0], 600, "dense"))
    assert sorted(ids(found)) == [document.id for document in corpus.documents]
    expected = [score for _, score in corpus.rank_by_vectors(corpus.vectors[0])]
    assert [hit.score for hit in found] == pytest.approx(expected, abs=1e-5)
    for document in corpus.documents[::100]:
        assert reader.search("words", query(document.text, mode="text"))[0].id == document.id


def test_a_reader_beside_a_writer_sees_every_commit_and_no_error(address, reader):
    vector = Corpus(1).vectors[0]
    with WriterProcess(address) as writer:
        while (num_told := writer.read()) < 300:
            found = reader.search("words", query(" ".join(WORDS), vector, 256))
            assert len(found) >= min(num_told, 256)
            assert len(set(ids(found))) == len(found)
