"""Small models for the real server, and what the tests need to watch its processes."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Far beyond what a busy machine needs: this only ends a wait for what never comes.
PATIENCE_SECONDS = 600.0

DOUBLER = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self.double(request) for request in requests]

    def double(self, request):
        values = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", values * 2)])
"""

VECTOR_CONFIG = """
input [{{ name: "x" data_type: TYPE_FP32 dims: [{width}] }}]
output [{{ name: "y" data_type: TYPE_FP32 dims: [{width}] }}]
instance_group [{{ kind: KIND_CPU count: 1 }}]
"""

# Two rows per run, so that every larger batch goes through the slicing.
BATCHED_CONFIG = (
    VECTOR_CONFIG.format(width=-1)
    + """
backend: "onnxruntime"
max_batch_size: 8
dynamic_batching { max_queue_delay_microseconds: 300000 }
parameters { key: "intra_op_thread_count" value: { string_value: "1" } }
parameters { key: "max_rows_per_run" value: { string_value: "2" } }
"""
)


def write_model(repository: Path, name: str, config: str, code: str | None = None) -> Path:
    """Write one model's folder; returns the folder of its only version."""
    version = repository / name / "1"
    version.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    if code is not None:
        (version / "model.py").write_text(code)
    return version


def write_affine_graph(path: Path, input_shape: list[int | str | None]) -> None:
    """Write an ONNX model of y = x * 3 + (1, 2, 3), which is only right on rows of three numbers."""
    shift = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "shift")
    scale = numpy_helper.from_array(np.array(3, np.float32), "scale")
    nodes = [helper.make_node("Mul", ["x", "scale"], ["scaled"]), helper.make_node("Add", ["scaled", "shift"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, input_shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "affine", values[:1], values[1:], [scale, shift])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def affine(rows: np.ndarray) -> np.ndarray:
    return rows * 3 + np.array([1, 2, 3], np.float32)


def wait_until(is_true: Callable[[], bool], timeout_seconds: float = PATIENCE_SECONDS) -> bool:
    deadline = time.monotonic() + timeout_seconds
    pause = threading.Event()
    while not is_true():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.05)
    return True


def is_group_alive(process_group: int) -> bool:
    """Return whether any process of the group still runs; a process that nobody has reaped yet has ended."""
    stats = (read_stat(folder) for folder in Path("/proc").glob("[0-9]*"))
    return any(stat and stat[0] != "Z" and int(stat[2]) == process_group for stat in stats)


def read_stat(folder: Path) -> list[str] | None:
    """Return a process's state, parent, process group and so on, or None if it has ended meanwhile."""
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def shared_memory_of(process_id: int) -> list[Path]:
    """Return the shared-memory regions of all embedded servers that this process has started."""
    return list(Path("/dev/shm").glob(f"refrag-{process_id}-*"))
