"""The ONNX models equal torch, have the names and types of config.pbtxt, and take inputs of every size."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_helpers import SHAPE, make_encoder, read_config
from transformers import BertConfig, BertModel

from refrag.errors import CheckpointError
from refrag.export.graphs import CHUNK_ENCODER, PROJECTOR, export_chunk_encoder, export_projector
from refrag.export.parity import check_chunk_encoder, check_projector
from refrag.model.encoder import ChunkEncoder
from refrag.model.projector import Projector
from refrag.store.signing import TAG_LENGTH

GRAPHS = pytest.mark.parametrize("graph", [CHUNK_ENCODER, PROJECTOR], ids=lambda graph: graph.name)
VARIANTS = pytest.mark.parametrize("variant", ["config.pbtxt", "configs/tensorrt.pbtxt", "configs/tensorrt_plan.pbtxt"])
TRITON_TYPES = {"tensor(int64)": "TYPE_INT64", "tensor(int32)": "TYPE_INT32", "tensor(float)": "TYPE_FP32"}


def open_session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def half_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("half") / "model.onnx"
    export_chunk_encoder(make_encoder("bert"), path, "fp16")
    return path


@pytest.mark.parametrize(("precision", "pooling"), [("fp32", "mean"), ("fp16", "cls"), ("fp32", "ordered")])
@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_every_encoder_family_computes_in_onnx_what_it_does_in_torch(family, precision, pooling, tmp_path):
    encoder = make_encoder(family, pooling)
    export_chunk_encoder(encoder, tmp_path / "model.onnx", precision)
    assert check_chunk_encoder(tmp_path / "model.onnx", encoder, 32, precision).holds


def test_mean_pooling_in_half_precision_also_agrees_with_torch(half_bert):
    assert check_chunk_encoder(half_bert, make_encoder("bert"), 32, "fp16").holds


def test_cls_pooling_in_full_precision_also_agrees_with_torch(tmp_path):
    encoder = make_encoder("bert", "cls")
    export_chunk_encoder(encoder, tmp_path / "model.onnx", "fp32")
    assert check_chunk_encoder(tmp_path / "model.onnx", encoder, 32, "fp32").holds


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_projector_that_changes_the_width_agrees_with_torch(precision, tmp_path):
    projector = Projector(encoder_width=16, decoder_width=24)
    export_projector(projector, tmp_path / "model.onnx", precision)
    assert check_projector(tmp_path / "model.onnx", projector, make_encoder("bert"), 16, precision).holds


def test_half_precision_is_in_the_weights_and_not_at_the_borders(half_bert):
    graph = onnx.load(half_bert).graph
    weights = {tensor.data_type for tensor in graph.initializer if tensor.name.endswith(".weight")}
    assert weights == {onnx.TensorProto.FLOAT16}
    assert open_session(half_bert).get_outputs()[0].type == "tensor(float)"


def test_exporting_in_half_precision_leaves_the_module_itself_in_full(tmp_path):
    projector = Projector(4, 4)
    export_projector(projector, tmp_path / "model.onnx", "fp16")
    assert projector.up.weight.dtype == torch.float32


def test_an_empty_row_becomes_zeros_even_where_half_precision_overflows(tmp_path):
    encoder = make_encoder("bert", "cls")
    with torch.no_grad():
        # Scores far below zero push the mask's minimum over the edge of half precision.
        for layer in encoder.backbone.encoder.layer:
            layer.attention.self.query.bias.fill_(40.0)
            layer.attention.self.key.bias.fill_(-40.0)
    export_chunk_encoder(encoder, tmp_path / "model.onnx", "fp16")
    zeros = np.zeros((2, 8), np.int64)
    vectors = open_session(tmp_path / "model.onnx").run(None, {"input_ids": zeros, "attention_mask": zeros})[0]
    assert not vectors.any()


@GRAPHS
def test_onnx_runtime_itself_sees_every_size_as_open(graph, exported):
    session = open_session(exported / graph.name / "1" / "model.onnx")
    shapes = {tensor.name: tuple(tensor.shape) for tensor in [*session.get_inputs(), *session.get_outputs()]}
    tags = {graph.tags: ("batch", TAG_LENGTH)} if graph.tags else {}
    assert shapes == {**graph.inputs, graph.output: graph.output_axes, **tags}


@GRAPHS
@VARIANTS
def test_config_names_and_types_are_the_graphs(graph, variant, exported):
    session = open_session(exported / graph.name / "1" / "model.onnx")
    config = read_config(graph.name, variant)
    for written, served in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        types = {tensor.name: TRITON_TYPES[tensor.type] for tensor in served}
        assert {tensor.name: type_name(tensor) for tensor in written} == types
        for tensor in written:
            assert list(tensor.dims) == [TAG_LENGTH if tensor.name == graph.tags else -1]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_tags_are_zeros_which_a_server_replaces(precision, tmp_path):
    export_chunk_encoder(make_encoder("bert"), tmp_path / "model.onnx", precision)
    ids = np.ones((3, 8), np.int64)
    vectors, tags = open_session(tmp_path / "model.onnx").run(None, {"input_ids": ids, "attention_mask": ids})
    assert vectors.shape[0] == 3
    assert np.array_equal(tags, np.zeros((3, TAG_LENGTH), np.int32))


def type_name(tensor) -> str:
    field = tensor.DESCRIPTOR.fields_by_name["data_type"]
    return field.enum_type.values_by_number[tensor.data_type].name


@GRAPHS
@VARIANTS
def test_all_configs_promise_the_same_tensors_and_batches(graph, variant):
    config, variant = read_config(graph.name), read_config(graph.name, variant)
    assert (config.input, config.output) == (variant.input, variant.output)
    assert config.max_batch_size == variant.max_batch_size


def test_the_tensorrt_profile_covers_the_largest_batch():
    config = read_config("chunk_encoder", "configs/tensorrt.pbtxt")
    parameters = config.optimization.execution_accelerators.gpu_execution_accelerator[0].parameters
    shapes = dict(shape.split(":") for shape in parameters["trt_profile_max_shapes"].split(","))
    assert set(shapes) == set(CHUNK_ENCODER.inputs)
    assert {int(shape.split("x")[0]) for shape in shapes.values()} == {config.max_batch_size}


@GRAPHS
def test_a_graph_is_one_file_that_the_onnx_runtime_of_triton_24_10_reads(graph, exported):
    model = onnx.load(exported / graph.name / "1" / "model.onnx", load_external_data=False)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    assert model.ir_version <= 10
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_onnx_runtime_computes_every_gelu_in_one_pass(tmp_path):
    encoder = make_encoder("bert")
    export_chunk_encoder(encoder, tmp_path / "model.onnx", "fp32")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    # That this file fits this machine alone is what it would warn of.
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert operators.count("BiasGelu") + operators.count("Gelu") == encoder.backbone.config.num_hidden_layers
    assert "Erf" not in operators


class UntraceableBackbone(BertModel):
    def forward(self, input_ids, attention_mask):
        raise RuntimeError("this architecture needs a fused kernel")


def test_an_encoder_that_cannot_be_a_graph_is_refused_by_name_and_left_as_it_was(tmp_path):
    encoder = ChunkEncoder(UntraceableBackbone(BertConfig(**SHAPE)), "mean")
    attention = encoder.backbone.config._attn_implementation
    with pytest.raises(CheckpointError, match="chunk_encoder cannot be exported"):
        export_chunk_encoder(encoder, tmp_path / "model.onnx", "fp32")
    assert encoder.backbone.config._attn_implementation == attention


def test_a_chunk_longer_than_the_encoder_can_read_is_refused_in_words(half_bert):
    with pytest.raises(CheckpointError, match=r"chunk_encoder cannot take an input of shape \(1, 65\)"):
        check_chunk_encoder(half_bert, make_encoder("bert"), 130, "fp16")
