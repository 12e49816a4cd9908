"""The arithmetics that graphs are exported in."""

from typing import Literal

Precision = Literal["fp32", "fp16", "int8"]
# The type that a graph is traced in: integers are put in its place afterwards (export/quantisation.py).
TracedPrecision = Literal["fp32", "fp16"]
