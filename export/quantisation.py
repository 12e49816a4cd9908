"""Rewriting of a chunk encoder to 8-bit integers, which CPUs multiply faster than floats.

Each product of activations with weights becomes

    x FP32 ─ QuantizeLinear ─► UINT8 ─ MatMulIntegerToFloat with INT8 weights ─► FP32, bias added

and all else stays as it is. Weights have a scale for each column. Activations have a scale for each tensor, which is
fixed here by calibration on real chunks. Dynamic quantisation takes the scales from each batch instead, so a chunk's
vector would change with the other chunks of its batch, and the store needs vectors that depend on the chunk alone.

Weights use half of INT8's range, so that every CPU computes the same. A CPU without VNNI instructions adds two
neighbouring products in 16 bits before it widens them, and silently cuts off what exceeds 16 bits:

    255 · 127 + 255 · 127 = 64770  >  32767  >=  32640 = 255 · 64 + 255 · 64

ONNX Runtime has a session option against this (session.x64quantprecision), but whoever loads the model would have to
set it. UINT8 weights would be safe too, but their kernels are slower, and those for AVX-512 do not use VNNI.

MatMulIntegerToFloat is an operator of ONNX Runtime alone; TensorRT does not know it.
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

# Inputs of the encoder by name: token ids and attention mask, both INT64 (C, L).
Batch = dict[str, np.ndarray]
# Smallest and largest value of a tensor, at most 0 and at least 0.
Range = tuple[float, float]

ORT_DOMAIN, ORT_OPSET, INTEGER_PRODUCT = "com.microsoft", 1, "MatMulIntegerToFloat"
# Twice the product of the two fits in INT16 (see above).
LARGEST_WEIGHT, LARGEST_ACTIVATION = 64, 255
SMALLEST_SCALE = 1e-12

# Vectors are stored under keys that depend on it: change it whenever the same encoder would give other integers.
SCHEME = f"activations 0 to {LARGEST_ACTIVATION} by tensor, min-max; weights +-{LARGEST_WEIGHT} by column"


def quantise_chunk_encoder(path: Path, batches: Sequence[Batch]) -> None:
    """Rewrite the FP32 ONNX model at `path` in place, with scales calibrated on `batches`.

    Raises CheckpointError if the model has no product with weights or is over 2 GB.
    """
    if list(path.parent.glob(f"{path.name}.*")):
        raise CheckpointError("the encoder's ONNX model is too large for one file, as int8 needs it; use fp32 or fp16")
    model = ir.load(path)
    if not Quantiser(model.graph, calibrate(path, batches)).rewrite_products():
        raise CheckpointError("the encoder has no product with weights to compute in int8; export it in fp32")
    RemoveUnusedNodesPass()(model)
    model.opset_imports[ORT_DOMAIN] = ORT_OPSET
    ir.save(model, path)


def calibrate(path: Path, batches: Sequence[Batch]) -> dict[str, Range]:
    """Return the range over all batches of each tensor that enters or leaves a product, by its name."""
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
    """A rewriter of the products in one ONNX graph."""

    def __init__(self, graph: ir.Graph, ranges: dict[str, Range]) -> None:
        self.graph, self.ranges = graph, ranges
        # activation -> its UINT8 form, scale and zero; query, key and value share one activation
        self.activations: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
        # weight -> its INT8 form, scales and zeros; layers may share one weight
        self.weights: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}

    def rewrite_products(self) -> int:
        """Rewrite every product of an activation with weights, and return how many there were."""
        products = [node for node in self.graph if self._is_product(node)]
        for product in products:
            self._rewrite(product)
        return len(products)

    def _is_product(self, node: ir.Node) -> bool:
        """Return whether the node multiplies a calibrated activation by weights (K, N)."""
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
        # The next product may read this output, and finds its range by its name, so the name moves to it.
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
    """Return the value of one UINT8 step (FP32), and the step that stands for 0 (UINT8); both arrays without axes."""
    smallest, largest = values
    scale = max((largest - smallest) / LARGEST_ACTIVATION, SMALLEST_SCALE)
    return np.array(scale, np.float32), np.array(round(-smallest / scale), np.uint8)


def quantise_weight(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights in INT8 within ±LARGEST_WEIGHT, and each column's step in FP32.  (K, N) -> (K, N), (N,)"""
    scales = np.maximum(np.abs(weight).max(0) / LARGEST_WEIGHT, SMALLEST_SCALE).astype(np.float32)
    return np.round(weight / scales).astype(np.int8), scales


class _Feeds(CalibrationDataReader):
    """The batches one after another, in the form that ONNX Runtime's calibration asks for."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> Batch | None:
        return next(self.batches, None)


def _with_zero(smallest: np.ndarray, largest: np.ndarray) -> Range:
    """Return the range widened to hold 0; ONNX Runtime gives each bound as an array of one value."""
    return min(0.0, smallest.item()), max(0.0, largest.item())


def _find_bias(product: ir.Node, scales: ir.Value) -> tuple[ir.Node | None, ir.Value | None]:
    """Return the addition of a constant vector (N,) that follows the product, and the vector, or None twice."""
    users = [use.node for use in product.outputs[0].uses()]
    if [user.op_type for user in users] != ["Add"]:
        return None, None
    [addition] = users
    for value in addition.inputs:
        if _constant_shape(value) == _constant_shape(scales):
            return addition, value
    return None, None


def _constant_shape(value: ir.Value | None) -> tuple[Any, ...] | None:
    """Return the shape of a constant, or None for any other value."""
    return None if value is None or value.const_value is None else tuple(value.const_value.shape)
