"""What a generated answer is worth against the expected one: ROUGE, whose F-measure over single words is F1."""

import functools

from rouge_score.rouge_scorer import RougeScorer

ROUGE = {"rouge1": "f1", "rouge2": "rouge_2", "rougeL": "rouge_l"}
TEXT_METRICS = tuple(ROUGE.values())


def score_text(text: str, expected: str) -> dict[str, float]:
    """Every text metric, each from 0 to 1."""
    if text == expected:
        return dict.fromkeys(TEXT_METRICS, 1.0)
    scores = _rouge_scorer().score(expected, text)
    return {ours: scores[theirs].fmeasure for theirs, ours in ROUGE.items()}


@functools.cache
def _rouge_scorer() -> RougeScorer:
    return RougeScorer(list(ROUGE))
