"""The tables that people look things up in say what the configs and the settings say."""

import ast
import dataclasses
import re

import pytest
from documentation import ROOT, read_page
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from refrag.config import RefragConfig
from refrag.decoders.vllm import VllmSettings

# Read as text, since what stands in refrag/serving can be imported by the server alone.
SETTINGS = {
    "preprocessing": ["PreprocessingSettings"],
    "expansion_policy": ["ExpansionSettings"],
    "decoder": ["DecoderSettings", "TorchSettings"],
    "chunk_store": ["ChunkStoreSettings"],
    "refrag_watched": ["WatchedSettings"],
    "retriever": ["RetrieverSettings"],
    "passage_store": ["PassageStoreSettings"],
    "engine_request": ["RequestDefaults"],
    "postprocessing": ["PostprocessingSettings"],
}
# Folders of models: those of every repository, those of collections, and those around an engine of TensorRT-LLM.
REPOSITORIES = ("model_repository", "export/variants/retrieval", "export/variants/tensorrt_llm")
# Its parameters are those of NVIDIA's backend.
NOT_OURS = {"tensorrt_llm"}
CONFIGURATION = "docs/configuration.md"


def read_config(model):
    [path] = [path for folder in REPOSITORIES if (path := ROOT / folder / model / "config.pbtxt").exists()]
    # The export fills it in from the engine.
    text = path.read_text().replace("TABLE_TYPE", "TYPE_FP16")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def type_of(tensor):
    return model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")


def shape_of(tensor):
    return "[n]" if list(tensor.dims) == [-1] else str(list(tensor.dims))


def table_under(page, heading):
    """Return the cells of each row of the first table under a heading, without backticks."""
    section = read_page(page).split(f"{heading}\n", 1)[1]
    table = re.search(r"^\| ---.*\n((?:\|.*\n)+)", section, re.MULTILINE).group(1)
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table.splitlines()]


def fields_of(name):
    """Return the fields of a settings class of the library, and those that it takes over."""
    sources = [ast.parse(path.read_text()) for path in (ROOT / "refrag").rglob("*.py")]
    classes = {node.name: node for source in sources for node in source.body if isinstance(node, ast.ClassDef)}
    own = {node.target.id for node in classes[name].body if isinstance(node, ast.AnnAssign)}
    return own.union(*(fields_of(base.id) for base in classes[name].bases))


@pytest.mark.parametrize(("heading", "side"), [("## A request", "input"), ("## A response", "output")])
def test_inputs_and_outputs_are_those_of_the_ensemble(heading, side):
    expected = {tensor.name: f"{type_of(tensor)} {shape_of(tensor)}" for tensor in getattr(read_config("refrag"), side)}
    assert {row[0]: row[1] for row in table_under(CONFIGURATION, heading)} == expected


@pytest.mark.parametrize(("heading", "side"), [("## Requests", "input"), ("## Responses", "output")])
def test_inputs_and_outputs_of_refrag_rag_are_those_of_refrag_and_some_more(heading, side):
    described = {
        tensor.name: f"{type_of(tensor)} {shape_of(tensor)}" for tensor in getattr(read_config("refrag_rag"), side)
    }
    shared = {tensor.name for tensor in getattr(read_config("refrag"), side)} - {"passages"}
    assert shared <= set(described)
    told = {row[0]: row[1] for row in table_under("docs/retrieval.md", heading)}
    assert told == {name: form for name, form in described.items() if name not in shared}


@pytest.mark.parametrize("model", SETTINGS)
def test_every_parameter_is_there_with_its_default(model):
    parameters = {name: value.string_value for name, value in read_config(model).parameters.items()}
    documented = {row[0]: row[1] for row in table_under(CONFIGURATION, f"### {model}")}
    assert documented == parameters
    # Only preprocessing keeps vectors in memory.
    fields = set().union(*map(fields_of, SETTINGS[model]))
    assert fields - set(parameters) <= {"store_memory_mib"}


def test_the_parameters_of_vllm_are_there_with_their_defaults():
    rows = table_under(CONFIGURATION, "them, and what they mean to vLLM is told in [decoders](decoders.md#vllm).")
    documented = {row[0]: row[1] for row in rows if row[0].islower()}
    assert documented == {field.name: str(field.default) for field in dataclasses.fields(VllmSettings)}


def test_no_other_model_has_parameters_that_are_not_told():
    paths = [path for folder in REPOSITORIES for path in (ROOT / folder).glob("*/config.pbtxt")]
    for model in sorted({path.parent.name for path in paths} - NOT_OURS):
        if parameters := read_config(model).parameters:
            assert {row[0] for row in table_under(CONFIGURATION, f"### {model}")} == set(parameters)


def test_the_checkpoints_settings_are_all_there():
    rows = table_under(CONFIGURATION, "## The checkpoint")
    fields = {field.name: field.default for field in dataclasses.fields(RefragConfig)}
    assert {row[0] for row in rows} == set(fields)
    for name, default, _ in rows:
        if default not in ("–", ""):
            assert str(fields[name]).lower() == default, name


def test_the_tensors_that_cross_are_those_of_the_ensemble():
    assert sorted(tuple(row[:5]) for row in table_under("docs/architecture.md", "## The tensors that cross")) == sorted(
        (name, type_name, shape, source, target) for name, type_name, shape, source, target in crossing_tensors()
    )


def crossing_tensors():
    """Return the name in the ensemble, type, documented shape where its rank is right, and the models at both ends."""
    steps = read_config("refrag").ensemble_scheduling.step
    sources = {value: (step.model_name, key) for step in steps for key, value in step.output_map.items()}
    outputs = {tensor.name for tensor in read_config("refrag").output}
    shapes = {row[0]: row[2] for row in table_under("docs/architecture.md", "## The tensors that cross")}
    for step in steps:
        for value in step.input_map.values():
            if value in sources and value not in outputs:
                source, key = sources[value]
                [tensor] = [tensor for tensor in read_config(source).output if tensor.name == key]
                rank = len(tensor.dims) + (read_config(source).max_batch_size > 0)
                shape = shapes.get(value, "")
                yield (
                    value,
                    type_of(tensor),
                    shape if len(shape.split(",")) == rank else tensor.dims,
                    source,
                    step.model_name,
                )
