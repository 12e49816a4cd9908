"""A run is known by what it reads: models, data and options, and by nothing else that lies in the same folders."""

import shutil
from dataclasses import replace

import pytest
from question_files import ROW, write_beir, write_open_domain, write_rows

from refrag.errors import InvalidRequest
from refrag.evaluation.questions.evaluate import read_rows
from refrag.evaluation.questions.identity import Inputs, digest_files, digest_model, identify
from refrag.evaluation.questions.options import QuestionOptions


@pytest.fixture
def inputs(tiny_checkpoint, tmp_path):
    tiny_checkpoint.save(tmp_path / "checkpoint")
    shutil.copytree(tmp_path / "checkpoint" / "decoder", tmp_path / "plain")
    return Inputs(tmp_path / "checkpoint", tmp_path / "plain", write_beir(tmp_path / "beir"))


def changed_by(inputs, path):
    """Return what another file at this path changes of the identity."""
    before = identify(inputs, QuestionOptions())
    path.write_text("something else\n")
    after = identify(inputs, QuestionOptions())
    return [name for name in before if before[name] != after[name]]


@pytest.mark.parametrize("name", ["refrag.json", "projector.safetensors", "decoder/config.json", "encoder/new.jinja"])
def test_every_file_of_a_checkpoint_counts(inputs, name):
    assert changed_by(inputs, inputs.checkpoint / name) == ["checkpoint"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_every_file_of_a_plain_decoder_counts(inputs, name):
    assert changed_by(inputs, inputs.plain / name) == ["plain"]


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_every_file_that_is_read_of_a_data_set_counts(inputs, name):
    assert changed_by(inputs, inputs.data / name) == ["data"]


@pytest.mark.parametrize("name", ["town.json", "town.answers.jsonl"])
def test_reports_and_answers_beside_them_do_not(inputs, name):
    for folder in (inputs.checkpoint, inputs.plain, inputs.data):
        assert changed_by(inputs, folder / name) == []


def test_passages_of_their_own_count(inputs, tmp_path):
    data = write_open_domain(tmp_path, "nq-open")
    asked = Inputs(inputs.checkpoint, None, data)
    assert changed_by(asked, tmp_path / "passages.jsonl") == ["passages"]


def test_files_are_known_by_their_names_and_contents(tmp_path):
    (tmp_path / "config.json").write_text("1")
    first = digest_model(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "tokenizer.json")
    assert digest_model(tmp_path) != first
    shutil.copy(tmp_path / "tokenizer.json", tmp_path / "copy")
    assert digest_files([tmp_path / "copy"], tmp_path / "copy") == digest_files(
        [tmp_path / "tokenizer.json"], tmp_path / "tokenizer.json"
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"num_passages": 100},
            "depth is 50, but num_passages 100 with a strong retriever takes the best 100 passages",
        ),
        (
            {"strength": "weak", "depth": 20},
            "depth is 20, .* weak retriever takes the best 50 passages; set depth to at",
        ),
    ],
)
def test_fewer_passages_than_are_to_be_read_are_never_searched_for(inputs, options, told):
    with pytest.raises(InvalidRequest, match=told):
        read_rows(inputs, QuestionOptions(**options))
    listed = replace(inputs, data=write_rows(inputs.data.parent, [ROW]))
    assert len(read_rows(listed, QuestionOptions(**options))) == 1
