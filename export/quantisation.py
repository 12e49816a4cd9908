"""A chunk encoder in 8-bit integers, which CPUs multiply faster than floats.

Each product of activations with weights becomes

    x FP32 ─ QuantizeLinear ─► UINT8 ─ MatMulIntegerToFloat with INT8 weights ─► FP32, bias added

and all else stays as it is. Weights have a scale for each column. Activations have one for each tensor, which is fixed
here by calibration on real chunks: scales that are taken from each batch, as in dynamic quantisation, would give a
chunk another vector beside other neighbours, and the store needs vectors that hang on nothing but the chunk.

Weights use half of INT8's range, so that every CPU computes the same. A CPU without VNNI instructions adds two
neighbouring products in 16 bits before it widens them, and what exceeds 16 bits is cut off without a word:

    255 · 127 + 255 · 127 = 64770  >  32767  >=  32640 = 255 · 64 + 255 · 64

ONNX Runtime has a session option against it (session.x64quantprecision), but whoever loads the model would have to set
it. UINT8 weights would be safe too, but their kernels are slower, and those for AVX-512 use no VNNI.

MatMulIntegerToFloat is ONNX Runtime's own operator; TensorRT does not know it.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator
from onnxscript import ir

from refrag.errors import CheckpointError

# C chunks, L encoder tokens per chunk, K rows and N columns of a weight

# What the encoder reads, by name: token ids and attention mask, both INT64 (C, L).
Batch = dict[str, np.ndarray]
# Smallest and largest value of a tensor, 0 between them.
Range = tuple[float, float]

ORT_DOMAIN, ORT_OPSET, INTEGER_PRODUCT = "com.microsoft", 1, "MatMulIntegerToFloat"
# Twice their product fits in INT16 (see above).
LARGEST_WEIGHT, LARGEST_ACTIVATION = 64, 255
SMALLEST_SCALE = 1e-12

# A part of the keys that vectors are stored under: whatever makes other integers of the same encoder needs another.
SCHEME = f"activations 0 to {LARGEST_ACTIVATION} by tensor, min-max; weights +-{LARGEST_WEIGHT} by column"


def quantise_chunk_encoder(path: Path, batches: Sequence[Batch]) -> None:
    """Rewrite the FP32 ONNX model at `path`; raise CheckpointError if it has no product of weights or is over 2 GB."""
    if list(path.parent.glob(f"{path.name}.*")):
        raise CheckpointError("the encoder's ONNX model is too large for one file, as int8 needs it; use fp32 or fp16")
    model = ir.load(path)
    if not Quantiser(model.graph, calibrate(path, batches)).rewrite_products():
        raise CheckpointError("the encoder has no product with weights to compute in int8; export it in fp32")
    RemoveUnusedNodesPass()(model)
    model.opset_imports[ORT_DOMAIN] = ORT_OPSET
    ir.save(model, path)


def calibrate(path: Path, batches: Sequence[Batch]) -> dict[str, Range]:
    """Of each tensor that enters or leaves a product, over all batches."""
    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            path,
            op_types_to_calibrate=["MatMul"],
            augmented_model_path=f"{folder}/augmented.onnx",
            calibrate_method=CalibrationMethod.MinMax,
        )
        calibrator.collect_data(_Feeds(batches))
        found = calibrator.compute_data()
    return {name: _with_zero(*data.range_value) for name, data in found.items()}


class Quantiser:
    """Rewrites the products in one ONNX graph."""

    def __init__(self, graph: ir.Graph, ranges: dict[str, Range]) -> None:
        self.graph, self.ranges = graph, ranges
        # By activation: itself in UINT8, its scale and its zero. Query, key and value are made of the same one.
        self.activations: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
        # By weight: itself in INT8, its scales and its zeros. Layers may share one.
        self.weights: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}

    def rewrite_products(self) -> int:
        """How many there were."""
        products = [node for node in self.graph if self._is_product(node)]
        for product in products:
            self._rewrite(product)
        return len(products)

    def _is_product(self, node: ir.Node) -> bool:
        """Whether it is one of a calibrated activation with weights (K, N)."""
        if node.op_type != "MatMul":
            return False
        x, weight = node.inputs
        return x is not None and x.name in self.ranges and len(_constant_shape(weight) or ()) == 2

    def _rewrite(self, product: ir.Node) -> None:
        x, weight = product.inputs
        assert x is not None and weight is not None
        x_int8, x_scale, x_zero = self._quantise(x, product)
        w_int8, w_scales, w_zeros = self._quantise_weight(weight)
        addition, bias = _find_bias(product, w_scales)
        replaced = [node for node in (addition, product) if node is not None]
        inputs = [x_int8, w_int8, x_scale, w_scales, x_zero, w_zeros, bias]
        integer_product = ir.node(INTEGER_PRODUCT, inputs, domain=ORT_DOMAIN)
        self.graph.insert_before(replaced[0], integer_product)
        before, after = replaced[0].outputs[0], integer_product.outputs[0]
        before.replace_all_uses_with(after)
        # The next product may read it, and finds its range by its name.
        before.name, after.name, after.type, after.shape = None, before.name, before.type, before.shape
        self.graph.remove(replaced, safe=True)

    def _quantise_weight(self, weight: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        if weight not in self.weights:
            assert weight.const_value is not None
            integers, scales = quantise_weight(weight.const_value.numpy())
            arrays = {"int8": integers, "scales": scales, "zeros": np.zeros(len(scales), np.int8)}
            w_int8, w_scales, w_zeros = (self._constant(f"{weight.name}_{role}", each) for role, each in arrays.items())
            self.weights[weight] = (w_int8, w_scales, w_zeros)
        return self.weights[weight]

    def _quantise(self, x: ir.Value, user: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
        if x not in self.activations:
            scale, zero = activation_scale(self.ranges[str(x.name)])
            constants = self._constant(f"{x.name}_scale", scale), self._constant(f"{x.name}_zero", zero)
            quantisation = ir.node("QuantizeLinear", [x, *constants])
            self.graph.insert_before(user, quantisation)
            self.activations[x] = (quantisation.outputs[0], *constants)
        return self.activations[x]

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value


def activation_scale(values: Range) -> tuple[np.ndarray, np.ndarray]:
    """What one step of UINT8 stands for, and which step for 0; both without axes."""
    smallest, largest = values
    scale = max((largest - smallest) / LARGEST_ACTIVATION, SMALLEST_SCALE)
    return np.array(scale, np.float32), np.array(round(-smallest / scale), np.uint8)


def quantise_weight(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """FP32 (K, N) → INT8 (K, N) of ±LARGEST_WEIGHT, and FP32 (N,): what one step stands for in each column."""
    scales = np.maximum(np.abs(weight).max(0) / LARGEST_WEIGHT, SMALLEST_SCALE).astype(np.float32)
    return np.round(weight / scales).astype(np.int8), scales


class _Feeds(CalibrationDataReader):
    """The batches, one after another, as ONNX Runtime asks for them."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> Batch | None:
        return next(self.batches, None)


def _with_zero(smallest: np.ndarray, largest: np.ndarray) -> Range:
    """ONNX Runtime tells each as an array of one."""
    return min(0.0, smallest.item()), max(0.0, largest.item())


def _find_bias(product: ir.Node, scales: ir.Value) -> tuple[ir.Node | None, ir.Value | None]:
    """The addition of a constant vector (N,) that follows, and the vector; None and None where none does."""
    users = [use.node for use in product.outputs[0].uses()]
    if [user.op_type for user in users] != ["Add"]:
        return None, None
    [addition] = users
    for value in addition.inputs:
        if _constant_shape(value) == _constant_shape(scales):
            return addition, value
    return None, None


def _constant_shape(value: ir.Value | None) -> tuple[Any, ...] | None:
    """None for what is no constant."""
    return None if value is None or value.const_value is None else tuple(value.const_value.shape)
