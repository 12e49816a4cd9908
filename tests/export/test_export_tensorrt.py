"""TensorRT plans: the ONNX models hold nothing that TensorRT cannot read, and are built with the right shapes."""

import os
import subprocess
import sys
import types
from pathlib import Path

import onnx
import pytest
from export_helpers import make_encoder, read_config

from refrag.errors import CheckpointError
from refrag.export.graphs import CHUNK_ENCODER, PROJECTOR, export_chunk_encoder, export_projector
from refrag.export.repository import export_repository
from refrag.export.tensorrt import MAX_CHUNKS, SCRIPT, PlanJob, build_plan, plan_jobs, trtexec_arguments, write_script
from refrag.model.projector import Projector
from refrag_client.cli.main import main

# Of the operator list that TensorRT 10.15 publishes (onnx-tensorrt, docs/operators.md): opsets 9 to 24, and of the
# operators that transformers' encoders are exported to, those with their types. FP32 and FP16 go with each number.
TENSORRT_RELEASE, TENSORRT_OPSETS = "10.15", range(9, 25)
ANY = {"FLOAT", "FLOAT16", "INT32", "INT64", "BOOL"}
NUMBERS = {"FLOAT", "FLOAT16", "INT32", "INT64"}
FLOATS, BOOLEANS = {"FLOAT", "FLOAT16"}, {"BOOL"}
TENSORRT_OPERATORS = {
    **dict.fromkeys(["Cast", "Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather"], ANY),
    **dict.fromkeys(["GatherElements", "GatherND", "Identity", "Reshape", "Shape", "Size", "Slice"], ANY),
    **dict.fromkeys(["Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"], ANY),
    **dict.fromkeys(["Abs", "Add", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"], NUMBERS),
    **dict.fromkeys(["Max", "Min", "Mod", "Mul", "Neg", "Pow", "Range", "ReduceMax", "ReduceMean"], NUMBERS),
    **dict.fromkeys(["ReduceMin", "ReduceSum", "Sub", "IsNaN", "Gelu", "Relu", "ScatterND"], NUMBERS),
    **dict.fromkeys(["Clip", "Cos", "CumSum", "Erf", "Exp", "Gemm", "LayerNormalization", "MatMul"], FLOATS),
    **dict.fromkeys(["Reciprocal", "Sigmoid", "Sin", "Softmax", "Sqrt", "Tanh"], FLOATS),
    **dict.fromkeys(["And", "Not", "Or", "Xor"], BOOLEANS),
}


def unreadable_nodes(path: Path) -> list[str]:
    """Return the nodes that TensorRT does not list, or not for the type of one of their inputs that are numbers."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    graph = model.graph
    kinds = {each.name: each.type.tensor_type.elem_type for each in [*graph.value_info, *graph.input, *graph.output]}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    faults = []
    for node in graph.node:
        allowed = TENSORRT_OPERATORS.get(node.op_type)
        found = {onnx.TensorProto.DataType.Name(kinds[name]) for name in node.input[:1] if name in kinds}
        if allowed is None or node.domain or not found <= allowed | ({"BOOL"} if node.op_type == "Where" else set()):
            faults.append(f"{node.op_type} {node.domain} of {found}")
    return faults


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_tensorrt_lists_every_operator_of_an_encoder(family, precision, tmp_path):
    export_chunk_encoder(make_encoder(family, "mean"), tmp_path / "model.onnx", precision)
    assert unreadable_nodes(tmp_path / "model.onnx") == []
    assert all(each.version in TENSORRT_OPSETS for each in onnx.load(tmp_path / "model.onnx").opset_import)


def test_all_that_tensorrt_does_not_list_of_roberta_is_the_sum_that_makes_its_positions(tmp_path):
    export_chunk_encoder(make_encoder("roberta", "mean"), tmp_path / "model.onnx", "fp32")
    assert unreadable_nodes(tmp_path / "model.onnx") == ["CumSum  of {'INT64'}"]


def test_tensorrt_lists_every_operator_of_ordered_pooling_and_of_the_projector(tmp_path):
    export_chunk_encoder(make_encoder("bert", "ordered"), tmp_path / "encoder.onnx", "fp16")
    export_projector(Projector(16, 24), tmp_path / "projector.onnx", "fp16")
    assert unreadable_nodes(tmp_path / "encoder.onnx") == unreadable_nodes(tmp_path / "projector.onnx") == []


def test_an_operator_of_onnx_runtime_alone_is_found(tmp_path):
    node = onnx.helper.make_node("MatMulIntegerToFloat", ["x", "x"], ["y"], domain="com.microsoft")
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "one", [x], [y]), opset_imports=opsets)
    onnx.save(model, tmp_path / "model.onnx")
    [fault] = unreadable_nodes(tmp_path / "model.onnx")
    assert fault.startswith("MatMulIntegerToFloat")


def test_the_profiles_reach_from_one_chunk_to_the_largest_batch(tmp_path):
    encoder, projector = plan_jobs(tmp_path, "1", encoder_length=48, encoder_width=384)
    assert encoder.shapes == dict.fromkeys(CHUNK_ENCODER.inputs, ((1, 1), (256, 48), (8192, 48)))
    assert projector.shapes == {"chunk_vectors": ((1, 384), (256, 384), (8192, 384))}
    for graph in (CHUNK_ENCODER, PROJECTOR):
        config = read_config(graph.name, "configs/tensorrt_plan.pbtxt")
        assert config.max_batch_size == MAX_CHUNKS
        assert config.platform == "tensorrt_plan"


def test_the_script_builds_a_plan_in_each_models_folder(tmp_path):
    """It runs here with a trtexec that notes where it stands and what it is told."""
    jobs = plan_jobs(tmp_path, "1", 48, 384)
    for job in jobs:
        job.folder.mkdir(parents=True)
    programs, notes = tmp_path / "bin", tmp_path / "notes"
    programs.mkdir()
    trtexec = programs / "trtexec"
    trtexec.write_text(
        f'#!/bin/sh\n[ "$1" = --help ] && echo "  --stronglyTyped  types" && exit\necho "$PWD $*" >> {notes}\n'
    )
    trtexec.chmod(0o755)
    script = write_script(tmp_path, jobs)
    subprocess.run([script], check=True, env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"})
    expected = [f"{job.folder} {' '.join(trtexec_arguments(job))} --stronglyTyped" for job in jobs]
    assert notes.read_text().splitlines() == expected
    assert "--maxShapes=input_ids:8192x48,attention_mask:8192x48" in expected[0]


class FakeTensorrt(types.ModuleType):
    """The parts of tensorrt that a build takes, which note what they are told."""

    def __init__(self, can_read=True, can_build=True):
        super().__init__("tensorrt")
        self.can_read, self.can_build, self.shapes = can_read, can_build, {}
        self.NetworkDefinitionCreationFlag = types.SimpleNamespace(STRONGLY_TYPED=3)
        self.Logger = type("Logger", (), {"WARNING": 1, "__init__": lambda own, level: None})
        self.num_errors = 0 if can_read else 1

    def Builder(self, logger):
        return self

    def create_network(self, flags):
        self.flags = flags
        return "network"

    def OnnxParser(self, network, logger):
        return self

    def parse_from_file(self, path):
        assert Path(path).name == "model.onnx"
        return self.can_read

    def get_error(self, index):
        return "no such operator"

    def create_builder_config(self):
        return self

    def create_optimization_profile(self):
        return self

    def set_shape(self, name, smallest, usual, largest):
        self.shapes[name] = (smallest, usual, largest)

    def add_optimization_profile(self, profile):
        self.profile = profile

    def build_serialized_network(self, network, config):
        return b"a plan" if self.can_build else None


def test_where_tensorrt_is_installed_it_builds_a_strongly_typed_plan(monkeypatch, tmp_path):
    fake = FakeTensorrt()
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    job = PlanJob.of(PROJECTOR, tmp_path, 48, 384)
    assert build_plan(job).read_bytes() == b"a plan"
    assert (fake.flags, fake.shapes) == (1 << 3, dict(job.shapes))


@pytest.mark.parametrize(
    ("fake", "named"),
    [(FakeTensorrt(can_read=False), "cannot read .*no such operator"), (FakeTensorrt(can_build=False), "not build")],
)
def test_a_plan_that_cannot_be_built_is_an_error_that_says_why(monkeypatch, tmp_path, fake, named):
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    with pytest.raises(Exception, match=named):
        build_plan(PlanJob.of(PROJECTOR, tmp_path, 48, 384))
    assert not (tmp_path / "model.plan").exists()


def test_the_command_writes_the_script_where_tensorrt_is_not_installed(checkpoint, repository, capsys, monkeypatch):
    monkeypatch.setattr("refrag.export.tensorrt.importlib.util.find_spec", lambda name: None)
    stale = repository / "projector" / "1" / "model.plan"
    stale.write_bytes(b"of an earlier export")
    options = ["--checkpoint", str(checkpoint), "--repository", str(repository), "--precision", "fp16", "--tensorrt"]
    assert main(["export", *options]) == 0
    assert f"{repository / SCRIPT} builds the plans" in capsys.readouterr().out
    assert os.access(repository / SCRIPT, os.X_OK)
    assert not stale.exists()


def test_int8_which_tensorrt_cannot_read_is_refused(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="TensorRT cannot read the encoder in int8"):
        export_repository(checkpoint, tmp_path / "new", "int8", calibration=tmp_path, tensorrt=True)
