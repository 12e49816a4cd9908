"""Answers under one condition: how many are exactly right, how far off the others are, and how long the prompts are."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from refrag.data.tasks import Task
from refrag.evaluation.case_set import CaseSet
from refrag.evaluation.cases import Case
from refrag.evaluation.conditions import Condition
from refrag.evaluation.prompts import build_prompts
from refrag.evaluation.reading import Reading, TargetedPrompt, generate_texts, read
from refrag.evaluation.report import Row
from refrag.evaluation.statistics import estimate_difference, estimate_mean, estimate_share, estimate_share_difference

# N questions

Metric = Literal["exact_match", "log_perplexity"]
METRICS: tuple[Metric, ...] = ("exact_match", "log_perplexity")
# The F-measure of ROUGE over single words is F1.
ROUGE = {"rouge1": "f1", "rouge2": "rouge_2", "rougeL": "rouge_l"}
TEXT_METRICS = tuple(ROUGE.values())

MAX_ANSWER_TOKENS, MAX_SUMMARY_TOKENS = 24, 64


@dataclass(frozen=True)
class Answers:
    """Results of all questions under one condition, with one entry for each question in every array, (N,).

    name: the name of their row.
    log_perplexity: mean negative log-likelihood of the answer's tokens.
    text_metrics: empty unless the wrong answers were generated.
    """

    name: str
    condition: Condition
    tasks: np.ndarray
    is_right: np.ndarray
    log_perplexity: np.ndarray
    prompt_slots: np.ndarray
    expanded_chunks: np.ndarray
    context_tokens: np.ndarray
    text_metrics: dict[str, np.ndarray]

    def metric(self, name: Metric) -> np.ndarray:
        return self.is_right if name == "exact_match" else self.log_perplexity


def answer(cases: CaseSet, condition: Condition, with_texts: bool = False) -> Answers:
    """Ask every question; `with_texts` also generates the text of wrong answers, and scores it with ROUGE."""
    return answer_prompts(cases, condition, build_prompts(cases, condition), with_texts)


def answer_prompts(
    cases: CaseSet, condition: Condition, prompts: Sequence[TargetedPrompt], with_texts: bool = False
) -> Answers:
    """Ask every question with prompts that are already built."""
    readings = read(cases.models.decoder(condition.form), prompts)
    return Answers(
        name=cases.name_row(condition),
        condition=condition,
        tasks=np.array([case.task for case in cases.cases]),
        is_right=np.array([reading.is_right for reading in readings]),
        log_perplexity=np.array([reading.losses.mean() for reading in readings]),
        prompt_slots=np.array([len(one.prompt.input_ids) for one in prompts]),
        expanded_chunks=np.array([one.num_expanded for one in prompts]),
        context_tokens=np.array([case.num_tokens for case in cases.cases]),
        text_metrics=_compare_texts(cases, condition, prompts, readings) if with_texts else {},
    )


def answer_row(answers: Answers, seed: int, setting: Mapping[str, Any] | None = None) -> Row:
    """Return the figures with their intervals; `setting` sets the row apart from others of the same condition."""
    return {
        "name": answers.name,
        **(setting or {}),
        "condition": asdict(answers.condition),
        "num_questions": len(answers.tasks),
        "exact_match": asdict(estimate_share(answers.is_right)),
        "exact_match_by_task": {
            task: asdict(estimate_share(answers.is_right[answers.tasks == task]))
            for task in dict.fromkeys(answers.tasks.tolist())
        },
        "log_perplexity": asdict(estimate_mean(answers.log_perplexity, seed)),
        **{metric: _mean(values) for metric, values in answers.text_metrics.items()},
        "prompt_slots": _mean(answers.prompt_slots),
        "expanded_chunks": _mean(answers.expanded_chunks),
        "context_tokens": _mean(answers.context_tokens),
    }


def answer_difference(
    answers: Answers, others: Answers, metric: Metric, seed: int, tasks: Sequence[Task] | None = None
) -> Row:
    """Return the metric of `answers` minus that of `others` on the same questions, or on those of some tasks."""
    chosen = np.full(len(answers.tasks), True) if tasks is None else np.isin(answers.tasks, tasks)
    values, other_values = answers.metric(metric)[chosen], others.metric(metric)[chosen]
    if metric == "exact_match":
        difference = estimate_share_difference(values, other_values)
    else:
        difference = estimate_difference(values, other_values, seed)
    row = {"name": answers.name, "against": others.name, "metric": metric, "difference": asdict(difference)}
    return row if tasks is None else {**row, "tasks": list(tasks)}


def score_text(text: str, expected: str) -> dict[str, float]:
    """Return every text metric of a generated answer, each from 0 to 1."""
    if text == expected:
        return dict.fromkeys(TEXT_METRICS, 1.0)
    scores = _rouge_scorer().score(expected, text)
    return {ours: scores[theirs].fmeasure for theirs, ours in ROUGE.items()}


def _compare_texts(
    cases: CaseSet, condition: Condition, prompts: Sequence[TargetedPrompt], readings: Sequence[Reading]
) -> dict[str, np.ndarray]:
    """Return the text metrics of each answer, of which only the wrong ones need generating.  -> (N,) each"""
    expected = [case.answer for case in cases.cases]
    wrong = [number for number, reading in enumerate(readings) if not reading.is_right]
    texts = dict(enumerate(expected))
    for max_tokens, numbers in _by_max_tokens(cases.cases, wrong).items():
        decoder, tokenizer = cases.models.decoder(condition.form), cases.models.checkpoint.decoder_tokenizer
        generated = generate_texts(decoder, tokenizer, [prompts[number].prompt for number in numbers], max_tokens)
        texts.update(zip(numbers, generated, strict=True))
    scores = [score_text(texts[number], answer) for number, answer in enumerate(expected)]
    return {name: np.array([score[name] for score in scores]) for name in TEXT_METRICS}


def _by_max_tokens(cases: Sequence[Case], numbers: Sequence[int]) -> dict[int, list[int]]:
    """Group the numbers of the cases by the most tokens that their answers may have."""
    groups: dict[int, list[int]] = {}
    for number in numbers:
        limit = MAX_SUMMARY_TOKENS if cases[number].task == "summary" else MAX_ANSWER_TOKENS
        groups.setdefault(limit, []).append(number)
    return groups


@functools.cache
def _rouge_scorer() -> RougeScorer:
    return RougeScorer(list(ROUGE))


def _mean(values: np.ndarray) -> float:
    return round(float(values.mean()), 4)
