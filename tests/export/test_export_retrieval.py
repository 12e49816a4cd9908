"""An export with retrieval adds its models, and a sentence encoder that computes what torch does."""

import json
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from export_helpers import read_config
from sentence_encoder import MAX_LENGTH, WIDTH, make_sentence_encoder
from transformers import BertModel

from refrag.errors import CheckpointError
from refrag.export.passage_encoder import SentenceEncoder
from refrag.export.repository import RETRIEVAL_TEMPLATES, export_repository
from refrag.retrieval.sentences import SentenceReader, normalise
from refrag_client.cli.main import main

ADDED = {"retriever", "passage_store", "refrag_rag", "passage_encoder"}


@pytest.fixture(scope="module")
def encoder(checkpoint, tmp_path_factory):
    return make_sentence_encoder(tmp_path_factory.mktemp("sentences") / "encoder", checkpoint / "decoder")


@pytest.fixture(scope="module")
def with_retrieval(exported, checkpoint, encoder, tmp_path_factory):
    repository = shutil.copytree(exported, tmp_path_factory.mktemp("retrieval") / "model_repository")
    export_repository(checkpoint, repository, has_retrieval=True, passage_encoder=encoder)
    return repository


def models(repository):
    return {path.parent.name for path in repository.glob("*/config.pbtxt")}


def test_only_an_export_with_retrieval_adds_its_models(exported, with_retrieval):
    assert not ADDED.intersection(models(exported))
    assert (
        models(with_retrieval)
        == models(exported) | ADDED
        == models(exported) | {path.name for path in RETRIEVAL_TEMPLATES.iterdir()}
    )
    for name in ("retriever", "passage_store"):
        assert (with_retrieval / name / "1" / "model.py").is_file()


def test_a_later_export_keeps_the_passage_encoder_by_which_collections_are_found(with_retrieval, checkpoint, tmp_path):
    repository = shutil.copytree(with_retrieval, tmp_path / "model_repository")
    form = repository / "retriever" / "1" / "checkpoint" / "passage_encoder.json"
    graph = repository / "passage_encoder" / "1" / "model.onnx"
    before = form.read_bytes(), graph.read_bytes()
    export_repository(checkpoint, repository)
    assert (form.read_bytes(), graph.read_bytes()) == before
    # What was stopped half-way is finished, with the encoder of the checkpoint's own base, which has none.
    shutil.rmtree(form.parent)
    export_repository(checkpoint, repository)
    assert form.parent.is_dir() and not form.exists()


@pytest.mark.parametrize("model", ["retriever", "passage_store"])
def test_the_exported_encoder_reads_texts_as_the_original_does(model, with_retrieval, encoder):
    reader = SentenceReader.load(with_retrieval / model / "1" / "checkpoint")
    assert (reader.form.max_length, reader.form.identity.width) == (MAX_LENGTH, WIDTH)
    ids, mask = reader.read_passages(["A keeper of boats.", "One word and " + "many more " * 60, ""])
    assert ids.shape[1] == MAX_LENGTH
    session = onnxruntime.InferenceSession(str(with_retrieval / "passage_encoder" / "1" / "model.onnx"))
    [vectors] = session.run(["passage_vectors"], {"input_ids": ids, "attention_mask": mask})
    backbone = BertModel.from_pretrained(encoder, add_pooling_layer=False).eval()
    with torch.no_grad():
        states = backbone(torch.tensor(ids), torch.tensor(mask)).last_hidden_state
    weights = torch.tensor(mask).unsqueeze(-1)
    expected = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
    assert np.abs(vectors[:2] - expected.numpy()[:2]).max() < 1e-4
    assert np.linalg.norm(normalise(vectors)[:2], axis=1) == pytest.approx(1)


def test_an_export_with_retrieval_says_what_it_lacks(with_retrieval, checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("refrag.commands.export.find_spec", lambda name: None)
    repository = shutil.copytree(with_retrieval, tmp_path / "model_repository")
    assert main(["export", "--checkpoint", str(checkpoint), "--repository", str(repository), "--retrieval"]) == 0
    printed = capsys.readouterr().out
    assert "collections are searched by words alone" in printed
    assert "lancedb, which is not installed here: pip install 'refrag[retrieval]'" in printed
    assert SentenceReader.load(repository / "retriever" / "1" / "checkpoint") is None


def test_another_encoder_or_precision_has_another_fingerprint(encoder, checkpoint, tmp_path):
    source = SentenceEncoder.read(encoder)
    loaded = source.load()
    prompted = shutil.copytree(encoder, tmp_path / "prompted")
    (prompted / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "query: "}}))
    forms = [
        source.form(loaded, "fp32"),
        source.form(loaded, "fp16"),
        SentenceEncoder.read(prompted).form(loaded, "fp32"),
    ]
    assert len({form.identity.fingerprint for form in forms}) == 3
    assert forms[2].question_prefix == "query: "
    assert source.form(loaded, "fp32") == forms[0]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"modules.json": None}, "has no modules.json; a passage encoder is a sentence encoder"),
        ({"modules.json": [{"type": "x.Dense", "path": "2_Dense"}]}, r"has the modules \['Dense'\]; supported are"),
        ({"1_Pooling/config.json": {"pooling_mode_max_tokens": True}}, r"pools by \['pooling_mode_max_tokens'\]"),
        ({"1_Pooling/config.json": {}}, r"pools by \[\]"),
    ],
)
def test_what_is_no_supported_sentence_encoder_is_refused(change, problem, encoder, tmp_path):
    changed = shutil.copytree(encoder, tmp_path / "changed")
    for name, content in change.items():
        (changed / name).unlink()
        if content is not None:
            (changed / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=problem):
        SentenceEncoder.read(changed)


def test_the_configs_fit_the_models(with_retrieval):
    config = read_config("passage_encoder", repository=with_retrieval)
    session = onnxruntime.InferenceSession(str(with_retrieval / "passage_encoder" / "1" / "model.onnx"))
    assert {each.name for each in config.input} == {each.name for each in session.get_inputs()}
    assert {each.name for each in config.output} == {each.name for each in session.get_outputs()}
