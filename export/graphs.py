"""Chunk encoder and projector as ONNX models, which a hand-written config.pbtxt each fits at any width."""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxscript import ir
from onnxscript.rewriter import pattern
from torch import Tensor, nn

from refrag.errors import CheckpointError
from refrag.export.precision import TracedPrecision
from refrag.model.encoder import ChunkEncoder
from refrag.model.projector import Projector
from refrag.store.signing import TAG_LENGTH

# C chunks, L encoder tokens per chunk, E encoder width, D decoder width

# The newest opset that TensorRT 10 and the ONNX Runtime of Triton 24.10 both know.
OPSET = 18
BATCH, LENGTH, ENCODER_WIDTH, DECODER_WIDTH = "batch", "length", "encoder_width", "decoder_width"
TRACED_NUM_CHUNKS, TRACED_LENGTH = 3, 8
# A note in the file, which the embedded server reads.
MAX_ROW_LENGTH = "max_row_length"


@dataclass(frozen=True)
class Graph:
    """Names and axes of one ONNX model's inputs and output; config.pbtxt repeats them.

    tags: name of another output, of zeros, which a server that signs what it computes replaces by a tag for each row.
    """

    name: str
    inputs: dict[str, tuple[str, str]]
    output: str
    output_axes: tuple[str, str]
    tags: str | None = None


CHUNK_ENCODER = Graph(
    name="chunk_encoder",
    inputs={"input_ids": (BATCH, LENGTH), "attention_mask": (BATCH, LENGTH)},
    output="chunk_vectors",
    output_axes=(BATCH, ENCODER_WIDTH),
    tags="vector_tags",
)
PASSAGE_ENCODER = Graph(
    name="passage_encoder",
    inputs={"input_ids": (BATCH, LENGTH), "attention_mask": (BATCH, LENGTH)},
    output="passage_vectors",
    output_axes=(BATCH, ENCODER_WIDTH),
)
PROJECTOR = Graph(
    name="projector",
    inputs={"chunk_vectors": (BATCH, ENCODER_WIDTH)},
    output="chunk_embeddings",
    output_axes=(BATCH, DECODER_WIDTH),
)


def export_chunk_encoder(
    encoder: ChunkEncoder, path: Path, precision: TracedPrecision, max_length: int | None = None
) -> None:
    """Write the encoder: INT64 `input_ids`, `attention_mask` (C, L) -> FP32 `chunk_vectors` (C, E), and zeros as tags.

    max_length: the longest row that a server lets through, noted in the file; None for any.
    Raises CheckpointError if it cannot be exported.
    """
    _export_encoder(CHUNK_ENCODER, encoder, path, precision, max_length)


def export_passage_encoder(encoder: ChunkEncoder, path: Path, precision: TracedPrecision, max_length: int) -> None:
    """Write a sentence encoder: INT64 `input_ids`, `attention_mask` (N, L) -> FP32 `passage_vectors` (N, E).

    Raises CheckpointError if it cannot be exported.
    """
    _export_encoder(PASSAGE_ENCODER, encoder, path, precision, max_length)


def export_projector(projector: Projector, path: Path, precision: TracedPrecision) -> None:
    """Write the projector: FP32 `chunk_vectors` (C, E) -> FP32 `chunk_embeddings` (C, D).

    Raises CheckpointError if it cannot be exported.
    """
    vectors = torch.zeros(TRACED_NUM_CHUNKS, projector.up.in_features)
    _export(PROJECTOR, ServedProjector(_in_precision(projector, precision)), (vectors,), path, {})


class ServedEncoder(nn.Module):
    """The encoder with FP32 output and zeros for a row that is all padding."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        is_empty = attention_mask.sum(1, keepdim=True) == 0  # (C, 1)
        vectors = self.encoder(input_ids, attention_mask).float()  # (C, L) -> (C, E)
        # Filled, not multiplied: where every position is masked, half precision can overflow to NaN.
        return vectors.masked_fill(is_empty, 0.0)


class ServedProjector(nn.Module):
    """The projector with FP32 at both ends."""

    def __init__(self, projector: nn.Module) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, chunk_vectors: Tensor) -> Tensor:
        dtype = next(self.projector.parameters()).dtype
        return self.projector(chunk_vectors.to(dtype)).float()  # (C, E) -> (C, D)


def _export_encoder(
    graph: Graph, encoder: ChunkEncoder, path: Path, precision: TracedPrecision, max_length: int | None
) -> None:
    notes = {} if max_length is None else {MAX_ROW_LENGTH: str(max_length)}
    ids = torch.zeros(TRACED_NUM_CHUNKS, TRACED_LENGTH, dtype=torch.int64)
    with _attention(encoder, precision):
        served = ServedEncoder(_in_precision(encoder, precision))
        _export(graph, served, (ids, torch.ones_like(ids)), path, notes)


def _in_precision(module: nn.Module, precision: TracedPrecision) -> nn.Module:
    """Return the module itself, or a copy in half precision.

    Types are written into the ONNX model, because newer TensorRT takes them from there and no longer chooses them.
    """
    if precision == "fp32":
        return module
    return copy.deepcopy(module).half()


def _export(graph: Graph, module: nn.Module, example: tuple[Tensor, ...], path: Path, notes: Mapping[str, str]) -> None:
    program = _trace(graph, module.eval(), example)
    program.model.metadata_props.update(notes)
    GELU_RULES.apply_to_model(program.model)
    _open_widths(program.model, graph)
    if graph.tags:
        _add_tags(program.model, graph.tags)
    # It becomes one file, unless that would exceed the 2 GB that one protobuf message can hold.
    program.save(path)
    onnx.checker.check_model(str(path), full_check=True)


def _gelu_as_exported(op: Any, x: Any, root: Any, one: Any, half: Any) -> Any:
    return op.Mul(x, op.Mul(half, op.Add(op.Erf(op.Div(x, root)), one)))


def _gelu_as_fused(op: Any, x: Any, root: Any, one: Any, half: Any) -> Any:
    """Multiply in the order that ONNX Runtime recognises as GELU, which it computes in one pass over memory."""
    return op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, root)), one)), half)


GELU_RULES = pattern.RewriteRuleSet([pattern.RewriteRule(_gelu_as_exported, _gelu_as_fused)], commute=True)


def _trace(graph: Graph, module: nn.Module, example: tuple[Tensor, ...]) -> torch.onnx.ONNXProgram:
    try:
        with _without_torch_chatter():
            # The dynamo exporter guards fused attention against fully masked rows; the older exporter is deprecated.
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(graph.inputs),
                output_names=[graph.output],
                dynamic_shapes={name: _dynamic_axes(axes) for name, axes in graph.inputs.items()},
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise CheckpointError(f"{graph.name} cannot be exported to ONNX: {error}") from error
    assert program is not None  # the dynamo exporter always returns one
    return program


def _dynamic_axes(axes: tuple[str, str]) -> dict[int, torch.export.Dim]:
    return {axis: torch.export.Dim(name) for axis, name in enumerate(axes) if name in (BATCH, LENGTH)}


def _open_widths(model: ir.Model, graph: Graph) -> None:
    """Make the feature widths symbolic.

    Triton's ONNX Runtime backend compares each size with config.pbtxt, where -1 matches only a symbolic size.
    """
    for value in model.graph.inputs:
        value.shape = ir.Shape(graph.inputs[str(value.name)])
    fixed = model.graph.outputs[0]
    fixed.name = f"{graph.output}_of_fixed_width"
    # A symbolic name alone is not enough: ONNX Runtime infers the width from the weights and writes it back.
    # It cannot infer the width after a reshape to (number of rows, -1).
    num_rows = ir.node("Shape", [fixed], {"start": 0, "end": 1})
    rest = ir.node("Constant", [], {"value_ints": [-1]})
    sizes = ir.node("Concat", [num_rows.outputs[0], rest.outputs[0]], {"axis": 0})
    reshape = ir.node("Reshape", [fixed, sizes.outputs[0]])
    model.graph.extend([num_rows, rest, sizes, reshape])
    opened = reshape.outputs[0]
    opened.name, opened.dtype, opened.shape = graph.output, ir.DataType.FLOAT, ir.Shape(graph.output_axes)
    model.graph.outputs[0] = opened


def _add_tags(model: ir.Model, name: str) -> None:
    """Add the output `name`, INT32 (C, TAG_LENGTH), of zeros."""
    num_rows = ir.node("Shape", [model.graph.outputs[0]], {"start": 0, "end": 1})
    length = ir.node("Constant", [], {"value_ints": [TAG_LENGTH]})
    sizes = ir.node("Concat", [num_rows.outputs[0], length.outputs[0]], {"axis": 0})
    zeros = ir.node("ConstantOfShape", [sizes.outputs[0]], {"value": ir.tensor(np.zeros(1, np.int32))})
    model.graph.extend([num_rows, length, sizes, zeros])
    tags = zeros.outputs[0]
    tags.name, tags.dtype, tags.shape = name, ir.DataType.INT32, ir.Shape((BATCH, TAG_LENGTH))
    model.graph.outputs.append(tags)


@contextmanager
def _attention(encoder: ChunkEncoder, precision: TracedPrecision) -> Iterator[None]:
    """Switch the encoder's attention to the form that is exported, and back again afterwards.

    FP32 is exported as two products and a softmax: ONNX Runtime computes them faster than what torch's fused attention
    is exported to. In half precision these overflow where a row is masked wholly, so the usual attention stays, whose
    export is guarded against such rows.
    """
    backbone = encoder.backbone
    usual = backbone.config._attn_implementation
    backbone.set_attn_implementation("eager" if precision == "fp32" else usual)
    try:
        yield
    finally:
        backbone.set_attn_implementation(usual)


@contextmanager
def _without_torch_chatter() -> Iterator[None]:
    """Hide the exporter's warnings about its own deprecations and about torchvision, which nobody here can act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
