"""Answers under one condition: how many are exactly right, how far off the others are, and what the prompts cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refrag.evaluation.cases import Case
from refrag.evaluation.conditions import Condition
from refrag.evaluation.encoding import CaseSet
from refrag.evaluation.generation import generate_texts
from refrag.evaluation.metrics import TEXT_METRICS, score_text
from refrag.evaluation.prompts import build_prompts
from refrag.evaluation.reading import EmbeddedExample, Reading, read

# N questions

MAX_ANSWER_TOKENS, MAX_SUMMARY_TOKENS = 24, 64


@dataclass(frozen=True)
class Answers:
    """One entry for each question, all (N,). log_perplexity: mean negative log-likelihood of the answer's tokens.

    name: what rows call them. text_metrics: none unless the wrong answers were generated.
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

    def metric(self, name: str) -> np.ndarray:
        return self.is_right if name == "exact_match" else self.log_perplexity


def answer(cases: CaseSet, condition: Condition, with_texts: bool = False) -> Answers:
    """Ask every question; `with_texts` generates the wrong answers too and compares their words."""
    return answer_prompts(cases, condition, build_prompts(cases, condition), with_texts)


def answer_prompts(
    cases: CaseSet, condition: Condition, prompts: Sequence[EmbeddedExample], with_texts: bool = False
) -> Answers:
    models = cases.models
    readings = read(models.decoder(condition.form), prompts, models.bos_id)
    return Answers(
        name=cases.name_row(condition),
        condition=condition,
        tasks=np.array([case.task for case in cases.cases]),
        is_right=np.array([reading.is_right for reading in readings]),
        log_perplexity=np.array([reading.losses.mean() for reading in readings]),
        prompt_slots=np.array([_prompt_slots(*pair) for pair in zip(prompts, cases.cases, strict=True)])
        + (models.bos_id is not None),
        expanded_chunks=np.array([_num_expanded(prompt, condition) for prompt in prompts]),
        context_tokens=np.array([case.num_tokens for case in cases.cases]),
        text_metrics=_compare_texts(cases, condition, prompts, readings) if with_texts else {},
    )


def count_slots(prompts: Sequence[EmbeddedExample]) -> int:
    """What the longest prompt takes with its answer and BOS."""
    return 1 + max(prompt.num_slots for prompt in prompts)


def _compare_texts(
    cases: CaseSet, condition: Condition, prompts: Sequence[EmbeddedExample], readings: Sequence[Reading]
) -> dict[str, np.ndarray]:
    expected = [case.answer for case in cases.cases]
    wrong = [number for number, reading in enumerate(readings) if not reading.is_right]
    texts = dict(enumerate(expected))
    for max_tokens, numbers in _by_max_tokens(cases.cases, wrong).items():
        decoder, tokenizer = cases.models.decoder(condition.form), cases.models.checkpoint.decoder_tokenizer
        generated = generate_texts(decoder, tokenizer, [prompts[number] for number in numbers], max_tokens)
        texts.update(zip(numbers, generated, strict=True))
    scores = [score_text(texts[number], answer) for number, answer in enumerate(expected)]
    return {name: np.array([score[name] for score in scores]) for name in TEXT_METRICS}


def _by_max_tokens(cases: Sequence[Case], numbers: Sequence[int]) -> dict[int, list[int]]:
    """Numbers of the cases by the length that their answers may have."""
    groups: dict[int, list[int]] = {}
    for number in numbers:
        limit = MAX_SUMMARY_TOKENS if cases[number].task == "summary" else MAX_ANSWER_TOKENS
        groups.setdefault(limit, []).append(number)
    return groups


def _prompt_slots(prompt: EmbeddedExample, case: Case) -> int:
    return prompt.num_slots - len(case.target_ids)


def _num_expanded(prompt: EmbeddedExample, condition: Condition) -> int:
    return len(prompt.example.expanded) if condition.form == "compressed" else 0
