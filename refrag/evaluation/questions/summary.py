"""The report of an evaluation on a question set: means, paired differences and recovery, as JSON and as Markdown."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from refrag.evaluation.conditions import Condition
from refrag.evaluation.questions.answers_file import Answer, AnswersFile
from refrag.evaluation.questions.conditions import spell
from refrag.evaluation.statistics import (
    Estimate,
    estimate_difference,
    estimate_mean,
    estimate_recovery,
    estimate_share,
    estimate_share_difference,
)
from refrag.reporting import table

if TYPE_CHECKING:
    from refrag.evaluation.questions.run import QuestionRun

Values = Mapping[str, Any]

KIND = "questions"
# Measures that a condition is compared by -> head of their column.
MEASURES = {
    "exact_match": "exact match, %",
    "f1": "F1, %",
    "contains": "contains answer, %",
    "rouge_l": "ROUGE-L, %",
    "true_answer": "true answer, %",
    "refused_rightly": "refused, nothing answers, %",
    "refused_wrongly": "refused, answerable, %",
    "log_perplexity": "log-perplexity",
}
# Those of a brief report.
BRIEF = {name: MEASURES[name] for name in ("contains", "f1", "refused_rightly", "log_perplexity")}
# Those of answers that are sentences.
BRIEF_OF_LONG = {name: MEASURES[name] for name in ("rouge_l", "refused_wrongly", "log_perplexity")}
# Of which an answer has 0 or 1.
SHARES = ("exact_match", "contains", "true_answer", "refused_rightly", "refused_wrongly")
RECOVERED = ("exact_match", "f1", "contains", "rouge_l", "log_perplexity")
FIDELITY = {"divergence": "divergence from plain", "agreement": "agreement with plain, %"}
SIZES = {
    "prompt_slots": "prompt slots",
    "expanded_chunks": "expanded chunks",
    "context_tokens": "context tokens",
    "cut_tokens": "tokens cut",
}
CUT = {"num_cut": "questions cut"}
SHARED = {"num_sharing_controls": "controls that share a passage"}
RECALL = {"gold_recall": "evidence expanded, %"}
DECIMALS = ("log_perplexity", "divergence")


def summarise(run: "QuestionRun", file: AnswersFile) -> dict[str, Any]:
    """Return the tables of all conditions: their means, and differences from plain and from no context."""
    asked = {condition: _answers(run, file, condition) for condition in run.conditions}
    answers = {condition: found for condition, found in asked.items() if found}
    plain, none = (next(one for one in answers if one.form == form) for form in ("full", "none"))
    seed = run.options.seed
    return {
        "kind": KIND,
        "num_rows": len(run.rows),
        "num_answerable": sum(row.answerable for row in run.rows),
        "num_lacking_evidence": sum(len(run.sources[row.id].gold or ()) > len(row.gold or ()) for row in run.rows),
        "rows": [
            {
                "condition": spell(one),
                "settings": asdict(one),
                **_means(answers[one], seed),
                "recovery": _recoveries(answers[one], answers[none], answers[plain], seed),
            }
            for one in answers
        ],
        "differences": [
            {"condition": spell(one), "against": spell(other), **_differences(answers[one], answers[other], seed)}
            for one, other in _pairs(answers, plain, none)
        ],
    }


def _pairs(asked: Collection[Condition], plain: Condition, none: Condition) -> list[tuple[Condition, Condition]]:
    """Return what is compared with what.

    All with plain and with no context, true embeddings with their controls, compression with plain cut to its slots,
    each policy with those before it that have the same budget, smaller chunks with larger ones.
    """
    controlled = [(replace(one, embeddings="true"), one) for one in asked if one.embeddings != "true"]
    selecting = [one for one in asked if one.selection != "none" and one.embeddings == "true"]
    cut = [one for one in asked if one.form == "truncated"]
    compressed = [one for one in asked if one.form == "compressed" and one.embeddings == "true"]
    return [
        *((one, other) for other in (plain, none) for one in asked if one != other),
        *((true, control) for true, control in controlled if true in asked),
        *((one, other) for other in cut for one in compressed if _budget(one) == _budget(other)),
        *(
            (later, other)
            for other, later in combinations(selecting, 2)
            if replace(later, selection=other.selection) == other
        ),
        *(
            (one, other)
            for one in compressed
            for other in compressed
            if one.chunk_size < other.chunk_size and replace(one, chunk_size=other.chunk_size) == other
        ),
    ]


def _budget(condition: Condition) -> tuple[int, float]:
    """Return what the slots of a compressed prompt follow from, or of a plain one cut to as many."""
    return condition.chunk_size, condition.expand_fraction


def render(report: Values) -> str:
    """Return the report as Markdown: answers, fidelity and sizes, recovery, differences."""
    rows, differences = report["rows"], report["differences"]
    lacking = ""
    if count := report.get("num_lacking_evidence"):
        lacking = f" For {count} some of the evidence is not among the passages read."
    head = (
        f"`{report['command']}` at {report['commit']} on {report['machine']}, seed {report['seed']}\n\n"
        f"{report['data']}: {report['num_rows']} rows, {report['num_answerable']} of them answerable.{lacking} "
        "Intervals are of 95%, in differences of the same rows; those that exclude zero are bold."
    )
    sections = [
        head,
        "## Answers\n\n" + _figures(rows, MEASURES),
        "## Fidelity and size\n\n" + _figures(rows, {**FIDELITY, **RECALL, **SIZES, **CUT, **SHARED}),
    ]
    if any(row["recovery"] for row in rows):
        about = "Share of the way from no context to plain: R = (condition − none) / (plain − none).\n\n"
        shown = [{**row["recovery"], "condition": row["condition"]} for row in rows if row["recovery"]]
        names = {name: MEASURES[name].removesuffix(", %") for name in RECOVERED}
        sections.append("## Recovery\n\n" + about + _figures(shown, names, decimals=RECOVERED))
    for against in dict.fromkeys(row["against"] for row in differences):
        chosen = [row for row in differences if row["against"] == against]
        sections.append(
            f"## Difference from `{against}`\n\n" + _figures(chosen, {**MEASURES, **FIDELITY, **RECALL}, bold=True)
        )
    return "\n\n".join(sections)


def render_briefly(
    report: Values,
    measures: Mapping[str, str] = BRIEF,
    recovered: str | None = "f1",
    sizes: Collection[str] = ("prompt_slots",),
) -> str:
    """Return one table of the report in Markdown: some measures, recovery of one or none, and sizes of the prompt."""
    rows = [
        {**row, **({"recovered": row["recovery"][recovered]} if recovered in row["recovery"] else {})}
        for row in report["rows"]
    ]
    head = {} if recovered is None else {"recovered": f"R of {MEASURES[recovered].removesuffix(', %')}"}
    columns = {**measures, **head, **{name: {**SIZES, **CUT}[name] for name in sizes}}
    return _figures(rows, columns, decimals=(*DECIMALS, "recovered"))


def render_policies(report: Values, others: Sequence[str]) -> str:
    """Return the report's policies in Markdown, beside plain and all compressed, and compared with `others`."""
    measures = {**RECALL, **BRIEF}
    shown = [row for row in report["rows"] if row["settings"]["embeddings"] == "true"]
    policies = [row["condition"] for row in shown if "gold_recall" in row]
    parts = [_figures(shown, {**measures, "prompt_slots": SIZES["prompt_slots"]})]
    for against in others:
        compared = [row for row in report["differences"] if row["against"] == against and row["condition"] in policies]
        parts += [f"Differences from `{against}` on the same rows:", _figures(compared, measures, bold=True)]
    return "\n\n".join(parts)


def render_chunk_sizes(report: Values) -> str:
    """Return a brief report of chunk sizes at one budget in Markdown, and how each differs from the next larger."""
    true = [row for row in report["rows"] if row["settings"]["embeddings"] == "true"]
    by_size = sorted((row for row in true if row["settings"]["form"] == "compressed"), key=_chunk_size)
    pairs = [(one["condition"], other["condition"]) for one, other in pairwise(by_size)]
    compared = [row for row in report["differences"] if (row["condition"], row["against"]) in pairs]
    named = [{**row, "condition": f"{row['condition']} less {row['against']}"} for row in compared]
    return f"{render_briefly(report, recovered=None)}\n\n{_figures(named, BRIEF, bold=True)}"


def render_passages(reports: Sequence[Values]) -> str:
    """Return reports of the same conditions over several numbers of passages as Markdown.

    A table of all but the controls, and one of compression less plain that is cut to its slots.
    """
    ordered = sorted(reports, key=_num_passages)
    none, *others = (row for row in ordered[0]["rows"] if row["settings"]["embeddings"] == "true")
    names = [row["condition"] for row in others]
    rows = [_over(one, row) for name in names for one in ordered for row in one["rows"] if row["condition"] == name]
    at_equal_slots = [
        _over(one, row) for one in ordered for row in one["differences"] if row["against"].startswith("plain:")
    ]
    columns = {**BRIEF, "prompt_slots": SIZES["prompt_slots"], **CUT}
    return (
        f"{_figures([none, *rows], columns)}\n\n"
        f"Differences from plain cut to as many slots, on the same rows:\n\n"
        f"{_figures(at_equal_slots, BRIEF, bold=True)}"
    )


def _num_passages(report: Values) -> int:
    return report["options"]["num_passages"]


def _over(report: Values, row: Values) -> Values:
    """Return the row with the number of passages in its name."""
    number = _num_passages(report)
    return {**row, "condition": f"{row['condition']}, {number} {'passage' if number == 1 else 'passages'}"}


def _chunk_size(row: Values) -> int:
    return row["settings"]["chunk_size"]


def _answers(run: "QuestionRun", file: AnswersFile, condition: Condition) -> dict[str, Answer]:
    """Return the answers of the rows that were asked under the condition, with refusals told apart, by row."""
    answers = {}
    for row in run.rows:
        if condition in run.asked(run.sources[row.id]):
            answer = file[row.id, spell(condition)]
            answers[row.id] = {**answer, f"refused_{'wrongly' if row.answerable else 'rightly'}": answer["refused"]}
    return answers


def _means(answers: Mapping[str, Answer], seed: int) -> dict[str, Any]:
    estimates = {name: _estimate(answers, name, seed) for name in (*MEASURES, *FIDELITY, *RECALL)}
    shared = [one["num_shared_passages"] for one in answers.values() if "num_shared_passages" in one]
    sizes = {name: round(float(np.mean([one[name] for one in answers.values()])), 1) for name in SIZES}
    return {
        "num_questions": len(answers),
        **{name: asdict(one) for name, one in estimates.items() if one is not None},
        **sizes,
        "num_cut": sum(one["cut_tokens"] > 0 for one in answers.values()),
        **({"num_sharing_controls": sum(count > 0 for count in shared)} if shared else {}),
    }


def _estimate(answers: Mapping[str, Answer], name: str, seed: int) -> Estimate | None:
    values = np.array([answer[name] for answer in answers.values() if name in answer], float)
    if not len(values):
        return None
    return estimate_share(values > 0) if name in SHARES else estimate_mean(values, seed)


def _differences(answers: Mapping[str, Answer], others: Mapping[str, Answer], seed: int) -> dict[str, Any]:
    differences = {}
    for name in (*MEASURES, *FIDELITY, *RECALL):
        values, other_values = _columns(name, answers, others)
        if len(values) and name in SHARES:
            differences[name] = asdict(estimate_share_difference(values > 0, other_values > 0))
        elif len(values):
            differences[name] = asdict(estimate_difference(values, other_values, seed))
    return differences


def _recoveries(
    answers: Mapping[str, Answer], none: Mapping[str, Answer], plain: Mapping[str, Answer], seed: int
) -> dict[str, Any]:
    """Return R by measure, where plain and no context differ beyond chance."""
    recoveries = {}
    for name in RECOVERED:
        values, lower, upper = _columns(name, answers, none, plain)
        if len(values) and (estimate := estimate_recovery(values, lower, upper, seed)):
            recoveries[name] = asdict(estimate)
    return recoveries


def _columns(name: str, *answers: Mapping[str, Answer]) -> list[np.ndarray]:
    """Return the measure of each set of answers, on the rows for which all of them have it."""
    shared = [row for row in answers[0] if all(name in one.get(row, ()) for one in answers)]
    return [np.array([one[row][name] for row in shared], float) for one in answers]


def _figures(
    rows: Sequence[Values], columns: Mapping[str, str], decimals: Sequence[str] = DECIMALS, bold: bool = False
) -> str:
    """Return a table of the columns that any row has; a row without a figure has an empty cell."""
    present = [name for name in columns if any(name in row for row in rows)]
    lines = [[row["condition"], *_cells(row, present, decimals, bold)] for row in rows]
    return table(["condition", *(columns[name] for name in present)], lines)


def _cells(row: Values, names: Sequence[str], decimals: Sequence[str], bold: bool) -> Iterator[str]:
    for name in names:
        value = row.get(name)
        if isinstance(value, Mapping):
            cell = _interval(value, name in decimals)
            yield f"**{cell}**" if bold and (value["low"] > 0 or value["high"] < 0) else cell
        else:
            yield "" if value is None else f"{value:.0f}"


def _interval(estimate: Values, is_decimal: bool) -> str:
    scale, places = (1, 3) if is_decimal else (100, 1)
    value, low, high = (f"{scale * estimate[name]:.{places}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
