"""Rows that are read together get the answers that each gets by itself."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from question_files import ROW, write_rows

from refrag.data.questions.read import read_questions
from refrag.errors import InvalidRequest
from refrag.evaluation.batch_reader import BatchReader
from refrag.evaluation.models import Models, load_models
from refrag.evaluation.questions.answers_file import AnswersFile
from refrag.evaluation.questions.conditions import parse_conditions
from refrag.evaluation.questions.evaluate import evaluate_questions
from refrag.evaluation.questions.identity import Inputs, identify
from refrag.evaluation.questions.options import QuestionOptions
from refrag.evaluation.questions.part import answers_path
from refrag.evaluation.questions.run import QuestionRun
from refrag.teacher_forcing.prompt_reader import PromptReader

WORLD = Path(__file__).parents[2] / "checkpoints" / "world"
OPTIONS = QuestionOptions(max_tokens=6)
ROWS = [
    ROW,
    {**ROW, "id": "q2", "question": "When did the mill burn?", "answers": ["1911"], "passages": ["mill"], "gold": [0]},
    {**ROW, "id": "q3", "question": "Who sells milk?", "answers": [], "passages": ["bees", "mill"], "gold": []},
    {**ROW, "id": "q4", "question": "Who?", "answers": ["Ana Korvin of Harrow"], "passages": ["bees"], "gold": None},
    {**ROW, "id": "q5", "question": "Who built it, and when?", "passages": ["bees", "bridge"], "gold": [1]},
    {**ROW, "id": "q6", "question": "What is sold?", "answers": ["honey"], "passages": ["bees", "mill", "ferry"]},
]
CONDITIONS = (
    "gold",
    "plain:p=0.5",
    "p=0.5:learned",
    "p=0.5:learned-as-served",
    "p=0.5:attention",
    "p=0.5:similarity:zeroed",
    "p=0.5:oracle",
    "p=1:random",
)


@pytest.fixture(scope="module")
def world() -> Models:
    return load_models(WORLD)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return read_questions(write_rows(tmp_path_factory.mktemp("rows"), ROWS))


def answer(models, rows, path, batch_rows):
    run = QuestionRun(models, rows, parse_conditions(CONDITIONS, 16), OPTIONS)
    file = AnswersFile(path, {"run": 1})
    run.answer_all(file, batch_rows)
    return file.answers


def assert_same(answers, expected):
    assert answers.keys() == expected.keys()
    for key, one in expected.items():
        assert answers[key].keys() == one.keys()
        for name, value in one.items():
            # Logarithms of float32 probabilities, in which a sum of another order shows.
            rounded = pytest.approx(value, abs=1e-4) if isinstance(value, float) else value
            assert answers[key][name] == rounded, (key, name)


@pytest.fixture(scope="module")
def alone(world, rows, tmp_path_factory):
    return answer(world, rows, tmp_path_factory.mktemp("alone") / "answers.jsonl", 1)


def test_four_rows_at_once_get_the_answers_of_one_at_a_time(world, rows, tmp_path, alone):
    conditions = {condition for _, condition in alone}
    assert {"none", "plain", "k=16:p=0", "k=16:p=0:shuffled", "k=16:p=0:zeroed"} < conditions and len(conditions) == 13
    lengths = {len(one["token_ids"]) for one in alone.values()}
    assert len(lengths) > 1 and any(one["end_id"] is not None for one in alone.values())
    assert_same(answer(world, rows, tmp_path / "together.jsonl", 4), alone)


@pytest.mark.parametrize("num_lines", [3, 30])
def test_rows_that_are_read_together_resume_in_the_middle(world, rows, tmp_path, alone, num_lines):
    killed = tmp_path / "killed.jsonl"
    answer(world, rows, killed, 4)
    lines = killed.read_text().splitlines(keepends=True)
    killed.write_text("".join(lines[:num_lines]) + lines[num_lines][:20])
    assert_same(answer(world, rows, killed, 4), alone)
    resumed = [json.loads(line) for line in killed.read_text().splitlines()]
    assert len(resumed) == len(lines) and resumed[:num_lines] == list(map(json.loads, lines[:num_lines]))


def test_bfloat16_is_close_to_float32_and_mixes_with_nothing(rows, tmp_path, alone):
    inputs = Inputs(WORLD, None, write_rows(tmp_path, ROWS))
    halves, output = replace(OPTIONS, dtype="bfloat16"), tmp_path / "town.json"
    report = evaluate_questions(inputs, CONDITIONS, halves, output)
    assert report["options"]["dtype"] == "bfloat16"
    answers = AnswersFile(answers_path(output), identify(inputs, halves)).answers
    assert answers.keys() == alone.keys()
    differences = [
        abs(one["log_perplexity"] - alone[key]["log_perplexity"])
        for key, one in answers.items()
        if "log_perplexity" in one
    ]
    assert 0 < max(differences) < 0.3
    with pytest.raises(InvalidRequest, match="dtype bfloat16 there, float32 here"):
        evaluate_questions(inputs, CONDITIONS, OPTIONS, output)


def test_prompts_read_together_go_on_as_each_does_alone(world, rows):
    run = QuestionRun(world, rows, parse_conditions(["p=0.5:random"], 16), OPTIONS)
    prompts = [run.contexts.build(row, None, run.conditions[2]).prompt for row in run.rows[:4]]
    decoder = world.checkpoint.decoder
    together, alone = BatchReader(decoder, prompts), [PromptReader(decoder, prompt) for prompt in prompts]
    assert together.answer(6) == [one.answer(6) for one in alone]
    continuations = [[5], [7, 8, 9], [], [11, 12]]
    read = together.logits(continuations)
    assert [len(logits) for logits in read] == [1, 3, 0, 2]
    perplexities = together.log_perplexities(continuations)
    for number in (0, 1, 3):
        torch.testing.assert_close(read[number], alone[number].logits(continuations[number]), atol=1e-3, rtol=1e-4)
        assert perplexities[number] == pytest.approx(alone[number].log_perplexity(continuations[number]), abs=1e-4)
    assert math.isnan(perplexities[2])


def test_too_little_memory_is_told_with_what_to_lower(world, rows, tmp_path, monkeypatch):
    def run_out(*_, **__):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    run = QuestionRun(world, rows, parse_conditions(CONDITIONS, 16), OPTIONS)
    file = AnswersFile(tmp_path / "answers.jsonl", {"run": 1})
    monkeypatch.setattr("refrag.evaluation.questions.run.BatchReader", run_out)
    with pytest.raises(InvalidRequest, match=r"too little memory for 4 rows together .* lower batch_rows"):
        run.answer_all(file, batch_rows=4)
