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
    assert Retriever(PASSAGES).rank("Who built the harbour of Wexley?", 2) == [1, 2]


def test_a_sentence_without_a_word_to_search_for_brings_no_passage():
    """Such as an initial, for which the first passage of all was taken."""
    assert Retriever(PASSAGES).rank("harbour Wexley born ships mill", 5)[-1] == 0


def test_a_weak_retriever_draws_from_the_best():
    retriever = Retriever(PASSAGES)
    drawn = retriever.retrieve(random.Random(0), "harbour", 3, "weak")
    assert len(set(drawn)) == 3 and retriever.retrieve(random.Random(0), "harbour", 3, "weak") == drawn
