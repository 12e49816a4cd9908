"""Reports over several sizes: of the chunks, each compared with the next larger, and of what was retrieved."""

import pytest
from question_files import ROW, write_rows

from refrag.errors import InvalidRequest
from refrag.evaluation.questions.evaluate import evaluate_questions
from refrag.evaluation.questions.identity import Inputs
from refrag.evaluation.questions.options import QuestionOptions
from refrag.evaluation.questions.summary import render_chunk_sizes, render_passages

ROWS = [
    ROW,
    {**ROW, "id": "q2", "question": "When did the mill burn?", "answers": ["1911"], "passages": ["mill"], "gold": [0]},
]
CONDITIONS = ["k=16:p=0", "k=4:p=0", "k=8:p=0", "k=8:p=0.5:random", "k=8:p=0.5:similarity"]


def test_chunk_sizes_are_compared_at_the_same_budget_and_policy(tiny_checkpoint, tmp_path):
    tiny_checkpoint.save(tmp_path / "checkpoint")
    inputs = Inputs(tmp_path / "checkpoint", None, write_rows(tmp_path, ROWS))
    options = QuestionOptions(max_tokens=4, source_order=True)
    report = evaluate_questions(inputs, CONDITIONS, options, tmp_path / "sizes.json")
    pairs = [(row["condition"], row["against"]) for row in report["differences"] if row["against"].endswith("p=0")]
    assert pairs == [("k=4:p=0", "k=16:p=0"), ("k=4:p=0", "k=8:p=0"), ("k=8:p=0", "k=16:p=0")]

    perplexity = {row["condition"]: row["log_perplexity"]["value"] for row in report["rows"]}
    [compared] = [row for row in report["differences"] if (row["condition"], row["against"]) == pairs[1]]
    assert abs(compared["log_perplexity"]["value"] - (perplexity["k=4:p=0"] - perplexity["k=8:p=0"])) < 2e-4

    at_nothing = [row for row in report["rows"] if "p=0.5" not in row["condition"]]
    text = render_chunk_sizes({**report, "rows": at_nothing})
    named = [line.split("|")[1].strip() for line in text.splitlines() if " less " in line]
    assert named == ["k=4:p=0 less k=8:p=0", "k=8:p=0 less k=16:p=0"]


def test_reports_over_more_passages_are_one_table_and_compare_equal_slots(tiny_checkpoint, tmp_path):
    tiny_checkpoint.save(tmp_path / "checkpoint")
    inputs = Inputs(tmp_path / "checkpoint", None, write_rows(tmp_path, ROWS))
    reports = [
        evaluate_questions(
            inputs,
            ["plain:p=0.5", "p=0.5:random"],
            QuestionOptions(max_tokens=4, num_passages=number),
            tmp_path / f"over-{number}.json",
        )
        for number in (3, 1)
    ]
    shown, compared = (part.splitlines() for part in render_passages(reports).split("Differences from plain cut"))
    assert sum(line.startswith("| none ") for line in shown) == 1
    names = [line.split("|")[1].strip() for line in shown if " passage" in line]
    conditions = ["plain", "plain:k=16:p=0.5", "k=16:p=0", "k=16:p=0.5:random"]
    assert sorted(names[::2]) == sorted(f"{name}, 1 passage" for name in conditions)
    assert names[1::2] == [name.replace(", 1 passage", ", 3 passages") for name in names[::2]]
    assert [line.split("|")[1].strip() for line in compared if " passage" in line] == [
        "k=16:p=0.5:random, 1 passage",
        "k=16:p=0.5:random, 3 passages",
    ]
    [difference] = [row for row in reports[0]["differences"] if row["against"] == "plain:k=16:p=0.5"]
    assert f"{difference['log_perplexity']['value']:.3f} (" in compared[-1]


def test_a_question_longer_than_the_window_is_refused_before_anything_is_answered(tiny_checkpoint, tmp_path):
    tiny_checkpoint.save(tmp_path / "checkpoint")
    long = {**ROW, "id": "q3", "question": "Who built the bridge? " * 2000}
    inputs = Inputs(tmp_path / "checkpoint", None, write_rows(tmp_path, [*ROWS, long]))
    with pytest.raises(
        InvalidRequest, match=r"row 'q3': its question and newest turns need .* slots with max_tokens, the window is"
    ):
        evaluate_questions(inputs, ["p=0"], QuestionOptions(max_tokens=4, source_order=True), tmp_path / "long.json")
    assert not (tmp_path / "long.json").exists()
