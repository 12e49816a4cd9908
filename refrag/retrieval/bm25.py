"""Retrieves passages for a question by BM25, as a strong or a weak retriever would (paper §5).

A strong retriever gives the best passages, a weak one random passages among the best fifty. The sentences of the best
passage are queries too, one hop on: the entity that a multi-hop question asks about is named in that passage alone.
"""

import itertools
import random
from collections.abc import Sequence
from typing import Literal

import bm25s
import numpy as np

Strength = Literal["strong", "weak"]
WEAK_POOL = 50


class Retriever:
    """A BM25 index over passages."""

    def __init__(self, passages: Sequence[str]) -> None:
        self.passages = passages
        self.index = bm25s.BM25()
        self.index.index(bm25s.tokenize(list(passages), stopwords="en", show_progress=False), show_progress=False)

    def retrieve(self, rng: random.Random, query: str, count: int, strength: Strength = "strong") -> list[int]:
        """Return the numbers of up to `count` passages, best first; in random order if the retriever is weak."""
        if strength == "strong":
            return self.rank(query, count)
        pool = self.rank(query, WEAK_POOL)
        return rng.sample(pool, min(count, len(pool)))

    def rank(self, query: str, count: int) -> list[int]:
        """Return the numbers of up to `count` passages, best first.

        Passages found by the query and by one hop take turns, so that both have their share of a short list.
        """
        by_query = _best_first(self._score(query))
        hops = [self._hop(sentence, by_query[0]) for sentence in self.passages[by_query[0]].split(". ")]
        merged = [number for pair in itertools.zip_longest(by_query, hops) for number in pair if number is not None]
        return list(dict.fromkeys(merged))[:count]

    def _hop(self, sentence: str, origin: int) -> int | None:
        """Return the best passage for a sentence of passage `origin`, other than itself; None if none shares a word."""
        scores = self._score(sentence)
        return next((number for number in _best_first(scores) if number != origin and scores[number] > 0), None)

    def _score(self, query: str) -> np.ndarray:
        tokens = bm25s.tokenize([query], stopwords="en", return_ids=False, show_progress=False)[0]
        scores: np.ndarray = self.index.get_scores(tokens) if tokens else np.zeros(len(self.passages))
        return scores


def _best_first(scores: np.ndarray) -> list[int]:
    return np.argsort(-scores, kind="stable").tolist()
