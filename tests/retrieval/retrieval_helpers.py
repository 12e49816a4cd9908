"""Passages of made-up words with the slow ways to search them, and the queries of the tests."""

import math
import random

import numpy as np

from refrag.retrieval.base import Document, PassageEncoderIdentity, Query
from refrag.retrieval.conditions import parse_filter

ENCODER = PassageEncoderIdentity("a" * 32, 16)
# No word of them has a stem of its own, and none is a stop word.
WORDS = [f"{first}{second}x" for first in "bdfgklmnprtvz" for second in "aeiou"]
K1, B = 1.2, 0.75


def unit(rng, count):
    vectors = rng.normal(size=(count, ENCODER.width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Corpus:
    """Passages of made-up words with random vectors, and the slow ways to search them."""

    def __init__(self, count, seed=0):
        words = random.Random(seed)
        self.documents = [
            Document(
                f"p{number:03}",
                " ".join(words.choices(WORDS, k=words.randint(5, 40))),
                metadata={"half": number % 2, "name": f"n{number}"},
            )
            for number in range(count)
        ]
        self.vectors = unit(np.random.default_rng(seed), count)

    def rank_by_words(self, question):
        """Return BM25 as in Robertson and Zaragoza (2009), best first; only passages with a word of the question."""
        texts = [document.text.split() for document in self.documents]
        mean_length = sum(map(len, texts)) / len(texts)
        scores = {}
        for document, text in zip(self.documents, texts, strict=True):
            score = 0.0
            for word in set(question.split()):
                num_with, count = sum(word in other for other in texts), text.count(word)
                rarity = math.log(1 + (len(texts) - num_with + 0.5) / (num_with + 0.5))
                score += rarity * count * (K1 + 1) / (count + K1 * (1 - B + B * len(text) / mean_length))
            if score:
                scores[document.id] = score
        return sorted(scores.items(), key=lambda item: (-item[1], item[0]))

    def rank_by_vectors(self, vector):
        similarities = self.vectors @ vector
        order = np.argsort(-similarities, kind="stable")
        return [(self.documents[number].id, float(similarities[number])) for number in order]


def query(text, vector=None, num_passages=10, mode="hybrid", filter="{}"):
    return Query(text, vector, num_passages, mode, parse_filter(filter))


def ids(hits):
    return [hit.id for hit in hits]
