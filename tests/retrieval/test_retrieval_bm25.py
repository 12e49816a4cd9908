"""The search by BM25 that lays out contexts for training and evaluation: by the question, and one hop on."""

import random

from refrag.retrieval.bm25 import Retriever

PASSAGES = [
    "Bananas are yellow fruit.",
    "The harbour of Wexley was built by Ada Korvin. J. K. Marsk paid for it",
    "Ada Korvin was born in Tolby.",
    "Marsk owned three ships.",
    "The mill burned down.",
]


def test_what_the_best_passage_names_is_found_one_hop_on():
    assert Retriever(PASSAGES).rank("Who built the harbour of Wexley?", 3) == [1, 2, 3]


def test_passages_that_share_no_word_with_question_or_sentence_come_last():
    """Not even where a sentence is an initial, which nothing can be searched for with."""
    assert Retriever(PASSAGES).rank("Who built the harbour of Wexley?", 10) == [1, 2, 3, 0, 4]


def test_a_question_that_shares_no_word_finds_what_there_is():
    assert Retriever(PASSAGES).rank("zzz", 2) == [0, 1]


def test_a_weak_retriever_draws_from_the_best():
    retriever = Retriever(PASSAGES)
    drawn = retriever.retrieve(random.Random(0), "harbour", 3, "weak")
    assert len(set(drawn)) == 3 and retriever.retrieve(random.Random(0), "harbour", 3, "weak") == drawn
