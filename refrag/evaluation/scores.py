"""Scores of one generated answer against the accepted ones, each from 0 to 1."""

import functools
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Literal
from unicodedata import category

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from refrag.data.scripts import part_unspaced, split_words

ARTICLES = re.compile(r"\b(a|an|the)\b")
# Parts of normalised sentences that say that the passages do not tell, so without articles and apostrophes.
REFUSALS = (
    "not in passages",
    "not in context",
    "not in provided",
    "not in given",
    "passages do not",
    "passages dont",
    "passage does not",
    "passage doesnt",
    "context does not",
    "context doesnt",
    "text does not",
    "not mentioned",
    "not stated",
    "not specified",
    "not provided",
    "not given in",
    "no answer",
    "no information",
    "not enough information",
    "insufficient information",
    "cannot answer",
    "cannot be answered",
    "cannot be determined",
    "cannot find",
    "cant answer",
    "cant find",
    "could not find",
    "couldnt find",
    "unable to answer",
    "unable to find",
    "unanswerable",
    "do not know",
    "dont know",
    "do not have information",
    "dont have information",
    "do not have that information",
    "dont have that information",
    "do not have this information",
    "dont have this information",
    "do not have enough information",
    "dont have enough information",
)
# Whole answers that say the same.
REFUSING_WORDS = ("unknown", "none", "not available", "na", "")

References = Literal["best", "mean"]


def normalise(text: str) -> str:
    """Return the text as SQuAD's scorer compares it: lower case, no punctuation, no articles, single spaces.

    Unlike there, punctuation beyond ASCII is none of the text either, and each character counts as a word in scripts
    that part none by spaces, as MLQA's scorer has both.
    """
    kept = "".join(one for one in text.lower() if one not in string.punctuation and category(one)[0] != "P")
    return " ".join(ARTICLES.sub(" ", part_unspaced(kept)).split())


def exact_match(text: str, answers: Sequence[str]) -> float:
    return float(normalise(text) in map(normalise, answers))


def token_f1(text: str, answers: Sequence[str]) -> float:
    """Return the F1 of normalised words against the answer that it is best for."""
    return max((_word_f1(normalise(text).split(), normalise(answer).split()) for answer in answers), default=0.0)


def contains_answer(text: str, answers: Sequence[str]) -> float:
    """Return 1 if the text holds an answer in whole words, both normalised."""
    padded = f" {normalise(text)} "
    return float(any(f" {normalise(answer)} " in padded for answer in answers if normalise(answer)))


def rouge_l(text: str, references: Sequence[str], over: References = "best") -> float:
    """Return the F-measure of the longest common subsequence: the best over the references, or the mean.

    Words of ASCII letters are those of Google's scorer, stemmed; that drops all others, which count here as they are.
    """
    scores = [_rouge_scorer().score(reference, text)["rougeL"].fmeasure for reference in references]
    if not scores:
        return 0.0
    return max(scores) if over == "best" else sum(scores) / len(scores)


def is_refusal(text: str, answers: Sequence[str] = ()) -> float:
    """Return 1 if the answer says that the passages do not tell, or says nothing; 0 if it is an accepted one."""
    words = normalise(text)
    if words and exact_match(text, answers):
        return 0.0
    padded = f" {words} "
    return float(words in REFUSING_WORDS or any(f" {normalise(phrase)} " in padded for phrase in REFUSALS))


def _word_f1(words: Sequence[str], expected: Sequence[str]) -> float:
    if not words or not expected:
        return float(words == expected)
    num_common = (Counter(words) & Counter(expected)).total()
    return 2 * num_common / (len(words) + len(expected))


class _Words:
    """Words of any script; a single character is one where no spaces part them."""

    def __init__(self) -> None:
        self.ascii = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        words = split_words(text.lower())
        return [part for word in words for part in (self.ascii.tokenize(word) if word.isascii() else [word])]


@functools.cache
def _rouge_scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], tokenizer=_Words())
