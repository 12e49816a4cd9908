"""The index of a collection's vectors: its lists grow with the collection, and searches stay exact."""

import numpy as np
import pytest
from retrieval_helpers import Corpus, ids, query, unit

pytest.importorskip("lancedb")
from lancedb.index import IvfFlat


@pytest.fixture
def small_lists(monkeypatch):
    """Have a hundred rows where an index begins to pay, and in each of its lists."""
    monkeypatch.setattr("refrag.retrieval.lance_writer.MIN_INDEXED_ROWS", 100)
    monkeypatch.setattr("refrag.retrieval.lance_writer.ROWS_PER_PARTITION", 100)


def test_a_large_collection_is_searched_exactly_too(writer, reader, small_lists):
    corpus = Corpus(600)
    writer.upsert("words", corpus.documents[:400], corpus.vectors[:400])
    writer.optimize("words")
    writer.upsert("words", corpus.documents[400:], corpus.vectors[400:])
    for vector in unit(np.random.default_rng(1), 10):
        expected = [each for each, _ in corpus.rank_by_vectors(vector)[:20]]
        assert ids(reader.search("words", query("", vector, 20, "dense"))) == expected


def vector_indexes(writer):
    return [index.name for index in writer._find("words").list_indices() if index.columns == ["vector"]]


def test_the_lists_of_vectors_are_made_anew_once_a_collection_has_doubled(writer, small_lists):
    corpus = Corpus(401)
    for start, end, num_trained in ((0, 200, 200), (200, 400, 200), (400, 401, 401)):
        writer.upsert("words", corpus.documents[start:end], corpus.vectors[start:end])
        writer.optimize("words")
        assert vector_indexes(writer) == [f"vector_{num_trained}"]


def test_an_index_of_an_older_release_or_from_before_a_kill_gives_way(writer, reader, small_lists):
    corpus = Corpus(200)
    writer.upsert("words", corpus.documents, corpus.vectors)
    for options in ({}, {"name": "vector_150"}):
        writer._find("words").create_index("vector", config=IvfFlat(distance_type="cosine"), **options)
    assert len(vector_indexes(writer)) == 2
    writer.optimize("words")
    assert vector_indexes(writer) == ["vector_150"]
    expected = [each for each, _ in corpus.rank_by_vectors(corpus.vectors[0])[:20]]
    assert ids(reader.search("words", query("", corpus.vectors[0], 20, "dense"))) == expected
