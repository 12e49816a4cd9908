"""The demo's corpus and questions: on every machine there is enough to search, and every question can be answered."""

import json

import pytest

from examples.demo import NUM_PASSAGES, QUESTIONS, Question, read_questions
from examples.documentation import read_documentation
from refrag.data.questions.evidence import holds_any
from refrag_client import InvalidRequest
from refrag_client.corpus import Corpus


@pytest.fixture(scope="module")
def corpus():
    return Corpus(read_documentation())


@pytest.fixture(scope="module")
def questions(corpus):
    return list(read_questions(QUESTIONS, corpus))


def test_the_documentation_of_python_is_hundreds_of_passages(corpus):
    assert len(corpus.passages) >= 500


def test_twenty_questions_differ_and_find_passages_that_hold_an_answer(questions):
    assert len({question.text for question in questions}) >= 20
    for question in questions:
        assert len(question.passages) == NUM_PASSAGES
        assert any(holds_any(passage, question.accepted) for passage in question.passages), question.text


def test_an_answer_is_right_if_it_contains_an_accepted_one():
    question = Question("Who?", ["the pdb module", "pdb"], [])
    assert question.is_right("It is PDB.")
    assert not question.is_right("It is pdbs.")


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([], "holds no questions"),
        (['{"question": "What is pdb?"}'], "line 1: KeyError.'answers'"),
        (['{"question": "What is pdb?", "answers": ["x"]}', "{"], "line 2: JSONDecodeError"),
        (["[]"], "line 1: TypeError"),
        (['{"question": "Zyxxyz?", "answers": ["x"]}'], "line 1: no passage shares a word with 'Zyxxyz.'"),
    ],
)
def test_a_bad_line_is_named(corpus, tmp_path, lines, complaint):
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises(InvalidRequest, match=complaint):
        list(read_questions(file, corpus))


def test_a_folder_of_ones_own_serves_as_well(tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"question": "Who keeps the bees?", "answers": ["Ada"]}))
    [question] = read_questions(file, Corpus(["Ada keeps bees.", "Nobody keeps a goat."]))
    assert question.passages[0] == "Ada keeps bees."
