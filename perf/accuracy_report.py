"""Summarises what perf.accuracy has asked, by setting and at equal latency, and draws its tables."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from perf.results import Report, summarise
from refrag.evaluation.questions.answers_file import Answer
from refrag.evaluation.statistics import (
    Estimate,
    estimate_difference,
    estimate_mean,
    estimate_share,
    estimate_share_difference,
)
from refrag.reporting import table

PLAIN = "plain"
MEASURES = {"contains": "contains answer, %", "f1": "F1, %", "exact_match": "exact match, %"}
# Of which an answer has 0 or 1.
SHARES = ("contains", "exact_match", "gold_retrieved")
# Of a compressed setting's questions, those that a plain one must have answered to be compared with it.
FEWEST_SHARED = 0.5

Answers = Mapping[str, Answer]  # by the row's id


@dataclass(frozen=True)
class Setting:
    """A number of passages to retrieve and a way to read them; `options` are the request's field `refrag`."""

    passages: int
    way: str
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.way}, {self.passages} passages"


def summarise_answers(settings: Sequence[Setting], asked: Mapping[str, Answers], seed: int) -> Report:
    """Return a row for each setting, and the comparisons at equal latency; `asked` has answers by setting's name."""
    fitting = {
        name: {key: answer for key, answer in answers.items() if "refusal" not in answer}
        for name, answers in asked.items()
    }
    plain = [(setting, fitting[setting.name]) for setting in settings if setting.way == PLAIN]
    compressed = [(setting, fitting[setting.name]) for setting in settings if setting.way != PLAIN]
    return {
        "rows": [
            {"passages": one.passages, "way": one.way, **_summarise_setting(fitting[one.name], asked[one.name], seed)}
            for one in settings
        ],
        "at_equal_latency": [
            {"passages": one.passages, "way": one.way, **compare_at_equal_latency(answers, plain, seed)}
            for one, answers in compressed
            if answers
        ],
    }


def _summarise_setting(answers: Answers, asked: Answers, seed: int) -> Report:
    refusals = [answer["refusal"] for answer in asked.values() if "refusal" in answer]
    told: Report = {"num_questions": len(answers), "num_unfit": len(refusals)}
    if refusals:
        told["refusal"] = refusals[0]
    if not answers:
        return told
    for name in (*MEASURES, "gold_retrieved"):
        values = np.array([answer[name] for answer in answers.values() if name in answer], float)
        if len(values):
            told[name] = asdict(_estimate(name, values, seed))
    for name in ("prompt_slots", "context_tokens", "num_retrieved"):
        told[name] = round(statistics.mean(answer[name] for answer in answers.values()), 1)
    return {**told, "first_token": summarise([answer["first_token_seconds"] for answer in answers.values()])}


def _estimate(name: str, values: np.ndarray, seed: int) -> Estimate:
    return estimate_share(values > 0) if name in SHARES else estimate_mean(values, seed)


def compare_at_equal_latency(answers: Answers, plain: Sequence[tuple[Setting, Answers]], seed: int) -> Report:
    """Return the differences from the plain setting with the most passages that is not later; none if all are later.

    answers: of a compressed setting, at least one. plain: the plain settings with their answers.
    """
    for setting, others in sorted(plain, key=lambda each: -each[0].passages):
        shared = [key for key in answers if key in others]
        if len(shared) < max(1, FEWEST_SHARED * len(answers)):
            continue
        own, other = (_median_ms([each[key] for key in shared]) for each in (answers, others))
        if other <= own:
            times = {"first_token_ms": own, "plain_first_token_ms": other}
            return {
                "plain_passages": setting.passages,
                "num_questions": len(shared),
                **times,
                **{name: asdict(_difference(name, answers, others, shared, seed)) for name in MEASURES},
            }
    return {"plain_passages": None, "first_token_ms": _median_ms(list(answers.values()))}


def _median_ms(answers: Sequence[Answer]) -> float:
    return round(1e3 * statistics.median(answer["first_token_seconds"] for answer in answers), 2)


def _difference(name: str, answers: Answers, others: Answers, shared: Sequence[str], seed: int) -> Estimate:
    values, other_values = (np.array([each[key][name] for key in shared], float) for each in (answers, others))
    if name in SHARES:
        return estimate_share_difference(values > 0, other_values > 0)
    return estimate_difference(values, other_values, seed)


def markdown(report: Report) -> str:
    """Return the tables of all settings and of equal latency, with what was asked, machine, commit and command."""
    index = report["collection"]
    about = (
        f"{report['num_rows']} questions of {report['data']} over {index['num_passages']:,} passages: "
        f"{index['num_gold']:,} with the evidence, {index['num_listed']:,} listed beside the questions, "
        f"{index['num_others']:,} others. `{report['command']}` on {report['machine']}, commit {report['commit']}."
    )
    return "\n\n".join([settings_table(report), *_list_refusals(report), latency_table(report), about])


def settings_table(report: Report) -> str:
    header = ["way", "passages", *MEASURES.values(), "evidence retrieved, %", "slots", "context tokens"]
    rows = [
        [
            row["way"],
            row["passages"],
            *(_percent(row.get(name)) for name in (*MEASURES, "gold_retrieved")),
            *(f"{row[name]:,.0f}" if name in row else "" for name in ("prompt_slots", "context_tokens")),
            *(f"{row['first_token'][name]:,.0f} ms" if "first_token" in row else "" for name in ("p50_ms", "p95_ms")),
            _count_unfit(row),
        ]
        for row in report["rows"]
    ]
    return table([*header, "first token", "p95", "does not fit"], rows)


def latency_table(report: Report) -> str:
    """Return the table of compressed settings, each beside the plain one that is not later."""
    header = ["way", "passages", "first token", "plain passages", "plain first token", "questions"]
    rows = [
        [
            row["way"],
            row["passages"],
            f"{row['first_token_ms']:,.0f} ms",
            *_plain_cells(row),
            *(_percent(row.get(name), is_difference=True) for name in MEASURES),
        ]
        for row in report["at_equal_latency"]
    ]
    return table([*header, *(f"difference of {name}" for name in MEASURES.values())], rows)


def _plain_cells(row: Report) -> list[object]:
    if row["plain_passages"] is None:
        return ["all later", "", ""]
    return [row["plain_passages"], f"{row['plain_first_token_ms']:,.0f} ms", row["num_questions"]]


def _count_unfit(row: Report) -> str:
    return f"{row['num_unfit']} of {row['num_unfit'] + row['num_questions']}" if row["num_unfit"] else ""


def _list_refusals(report: Report) -> Iterator[str]:
    """Yield a sentence for each setting of which some questions were refused."""
    for row in report["rows"]:
        if row["num_unfit"]:
            said = f"does not fit for {_count_unfit(row)} questions; the first refusal: {row['refusal']}"
            yield f"{row['way']}, {row['passages']} passages {said}"


def _percent(estimate: Mapping[str, float] | None, is_difference: bool = False) -> str:
    if estimate is None:
        return ""
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    sign = "+" if is_difference else ""
    return f"{value:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"
