"""What a generated answer is worth against the expected one: F1 over words as in SQuAD, and ROUGE."""

import functools
import re
import string
from collections import Counter

from rouge_score.rouge_scorer import RougeScorer

ROUGE = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}
TEXT_METRICS = ("f1", *ROUGE.values())
ARTICLES = re.compile(r"\b(a|an|the)\b")


def score_text(text: str, expected: str) -> dict[str, float]:
    """Every text metric, each from 0 to 1."""
    if text == expected:
        return dict.fromkeys(TEXT_METRICS, 1.0)
    scores = _rouge_scorer().score(expected, text)
    return {"f1": word_f1(text, expected), **{ours: scores[theirs].fmeasure for theirs, ours in ROUGE.items()}}


def word_f1(text: str, expected: str) -> float:
    """Harmonic mean of precision and recall over the words of both, whatever their order."""
    words, expected_words = normalised_words(text), normalised_words(expected)
    num_shared = (Counter(words) & Counter(expected_words)).total()
    return 2 * num_shared / max(1, len(words) + len(expected_words))


def normalised_words(text: str) -> list[str]:
    """Words in lower case without punctuation and articles, as SQuAD's own script has them."""
    plain = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return ARTICLES.sub(" ", plain).split()


@functools.cache
def _rouge_scorer() -> RougeScorer:
    return RougeScorer(list(ROUGE))
