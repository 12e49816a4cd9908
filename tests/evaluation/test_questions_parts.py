"""Processes that share a run answer what one would have answered, and a run of no part takes it over."""

from dataclasses import replace

import pytest
from question_files import ROW, write_rows

from refrag.errors import InvalidRequest
from refrag.evaluation.questions.evaluate import answer_part, evaluate_questions
from refrag.evaluation.questions.execution import Execution
from refrag.evaluation.questions.identity import Inputs
from refrag.evaluation.questions.options import QuestionOptions
from refrag.evaluation.questions.part import Part, answers_path, find_parts

OPTIONS, CPU = QuestionOptions(max_tokens=2), Execution("cpu")
ROWS = [{**ROW, "id": f"q{number}", "passages": [name]} for number, name in enumerate(("bees", "mill", "bridge"))]
for row in ROWS:
    row["gold"] = None


@pytest.fixture
def inputs(tiny_checkpoint, tmp_path):
    tiny_checkpoint.save(tmp_path / "checkpoint")
    return Inputs(tmp_path / "checkpoint", None, write_rows(tmp_path, ROWS))


def test_parts_are_taken_over_and_equal_an_undivided_run(inputs, tmp_path):
    whole, output = tmp_path / "whole.json", tmp_path / "shared.json"
    expected = evaluate_questions(inputs, ["p=0"], OPTIONS, whole, CPU)
    paths = [answer_part(inputs, ["p=0"], OPTIONS, output, CPU, Part(number, 2)) for number in (1, 2)]
    assert [path.name for path in paths] == ["shared.part-1-of-2.answers.jsonl", "shared.part-2-of-2.answers.jsonl"]
    assert not output.exists() and find_parts(output) == paths
    # Of each file the first line is the identity; 5 conditions of 2 rows and of 1.
    lines = [path.read_text().splitlines() for path in paths]
    assert [len(one) for one in lines] == [11, 6]
    paths[0].write_text(paths[0].read_text() + '{"row": "unfinished')
    before = paths[0].read_bytes()
    report = evaluate_questions(inputs, ["p=0"], OPTIONS, output, CPU)
    assert report["rows"] == expected["rows"]
    together = answers_path(output).read_text().splitlines()
    assert together[1:] == [line for one in lines for line in one[1:]]
    assert sorted(together) == sorted(answers_path(whole).read_text().splitlines())
    assert paths[0].read_bytes() == before


def test_what_a_part_has_not_answered_is_answered_by_the_run_that_takes_it_over(inputs, tmp_path):
    output = tmp_path / "shared.json"
    answer_part(inputs, ["p=0"], OPTIONS, output, CPU, Part(1, 3))
    assert evaluate_questions(inputs, ["p=0"], OPTIONS, output, CPU)["num_rows"] == 3
    assert len(answers_path(output).read_text().splitlines()) == 16


def test_a_part_of_another_run_is_refused(inputs, tmp_path):
    output = tmp_path / "shared.json"
    answer_part(inputs, ["p=0"], replace(OPTIONS, max_tokens=1), output, CPU, Part(1, 3))
    with pytest.raises(InvalidRequest, match=r"part-1-of-3.* holds answers of another run \(max_tokens 1 there, 2"):
        evaluate_questions(inputs, ["p=0"], OPTIONS, output, CPU)


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "1/0", "-1/2", "1/2/3", "x/2"])
def test_a_part_of_another_form_is_refused(text):
    with pytest.raises(InvalidRequest, match=f"part is '{text}'; write I/N with I from 1 to N"):
        Part.parse(text)


def test_the_parts_have_every_row_once():
    rows = list(range(10))
    parts = [rows[Part.parse(f"{number}/3").rows] for number in (1, 2, 3)]
    assert parts == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
