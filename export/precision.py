"""Precisions that ONNX models are exported in."""

from typing import Literal

Precision = Literal["fp32", "fp16", "int8"]
# The precision that a module is traced in: export/quantisation.py replaces FP32 products with integer ones afterwards.
TracedPrecision = Literal["fp32", "fp16"]
