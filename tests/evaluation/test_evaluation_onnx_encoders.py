"""The command answers with an ONNX encoder's vectors."""

import json
import re

import onnx
import pytest
from onnx import numpy_helper

from refrag.errors import CheckpointError, InvalidRequest
from refrag.evaluation.models import parse_onnx_encoders
from refrag.export.graphs import export_chunk_encoder
from refrag_client.cli.main import main


@pytest.fixture(scope="module")
def exact(tiny_checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("exact") / "model.onnx"
    export_chunk_encoder(tiny_checkpoint.encoder, path, "fp32")
    return path


@pytest.fixture(scope="module")
def damaged(exact, tmp_path_factory):
    """Return an ONNX encoder whose embedding table has its rows in reverse, so each token has another one's."""
    path, model = tmp_path_factory.mktemp("damaged") / "model.onnx", onnx.load(exact)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("word_embeddings.weight"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), tensor.name))
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def table(tiny_checkpoint, exact, damaged, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx_encoders")
    tiny_checkpoint.save(folder / "checkpoint")
    options = ["--checkpoint", f"{folder}/checkpoint", "--output", f"{folder}/out.json", "--num-questions", "8"]
    options += ["--tables", "onnx-encoders", "--onnx-encoder", f"exact={exact}", f"damaged={damaged}"]
    assert main(["evaluate", "run", *options]) == 0
    return json.loads((folder / "out.json").read_text())["tables"]["onnx-encoders"]


def picks_of(table, name):
    """Return how many of the policy's picks are the same, and how many there are."""
    found = re.search(rf"Vectors by {name}: .*?; (\d+) of (\d+) picks", table["about"])
    return int(found[1]), int(found[2])


def test_an_onnx_encoder_in_full_precision_answers_as_torch_does(table):
    differences = [row["difference"] for row in table["differences"] if row["name"].endswith("exact")]
    assert len(differences) == 4
    assert all(abs(difference["value"]) < 1e-4 for difference in differences)
    shared, picks = picks_of(table, "exact")
    assert shared == picks > 0


def test_an_onnx_encoder_that_computes_something_else_is_told_apart(table):
    [changed] = [
        row["difference"]
        for row in table["differences"]
        if row["name"] == "REFRAG k=16, damaged" and row["metric"] == "log_perplexity"
    ]
    assert abs(changed["value"]) > 1e-4
    shared, picks = picks_of(table, "damaged")
    assert shared < picks


def test_an_onnx_encoder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.onnx does not exist; export the checkpoint"):
        parse_onnx_encoders([f"int8={tmp_path}/nowhere.onnx"])


@pytest.mark.parametrize("text", ["model.onnx", "=model.onnx", "int8="])
def test_an_onnx_encoder_without_a_name_is_refused_with_the_form(text):
    with pytest.raises(InvalidRequest, match=r"the form is NAME=model\.onnx"):
        parse_onnx_encoders([text])


@pytest.mark.parametrize(
    "texts, told",
    [
        (["a=x", "a=y"], "two rows would be called 'a'; give each a name of its own"),
        (["torch=x"], "'torch', which is torch's own row; give it another name"),
    ],
)
def test_names_that_would_be_mistaken_are_refused(texts, told):
    with pytest.raises(InvalidRequest, match=told):
        parse_onnx_encoders(texts)
