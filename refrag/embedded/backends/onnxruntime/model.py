"""Serves `backend: "onnxruntime"` models on ONNX Runtime, for a tritonserver without its own ONNX Runtime backend.

Triton prefers a backend's shared library over its model.py. So one config.pbtxt and one model.onnx run here
and, on NVIDIA's library, in the official container. Of that backend's settings this one follows:

    parameters { key: "intra_op_thread_count" value: { string_value: "2" } }    default: cores / instances
    parameters { key: "max_rows_per_run"      value: { string_value: "256" } }  our own: rows per run
    parameters { key: "signature_output"      value: { string_value: "tags" } } our own: an output to be filled with
                                                                                 signatures (refrag/store/signing.py)

Of other parameters, which may be the official backend's, the log says that they are not read. Accelerator blocks
(TensorRT, CUDA graphs) are ignored. Tensors are never converted: where config.pbtxt and
the ONNX model disagree on a type, the load fails.

A request of more rows than one run takes is computed in the background, piece by piece; between the pieces others have
their turn. So nobody waits for the longest request that the config allows, only for one run of it.
"""

import json
import os
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from refrag.embedded.batched_model import BatchedModel, Tensors
from refrag.embedded.turns import Turns
from refrag.errors import InvalidRequest
from refrag.machine.allocator import keep_freed_memory
from refrag.machine.crashes import tell_of_crashes
from refrag.spelling import suggestion
from refrag.store.signing import MODEL_OUTPUT, load_graph_key, sign_rows

PARAMETERS = NUM_THREADS, MAX_ROWS, SIGNATURES = "intra_op_thread_count", "max_rows_per_run", "signature_output"
DEFAULT_MAX_ROWS_PER_RUN = 256
# What the official backend sets for a model that can be batched when the config does not say.
DEFAULT_MAX_BATCH_SIZE = 4

TRITON_TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
    "tensor(double)": "TYPE_FP64",
    "tensor(bool)": "TYPE_BOOL",
    **{f"tensor(int{bits})": f"TYPE_INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"tensor(uint{bits})": f"TYPE_UINT{bits}" for bits in (8, 16, 32, 64)},
}


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        written = config.as_dict()
        if not (written["input"] and written["output"]):
            complete_config(config, Path(pb_utils.get_model_dir()) / file_name(written))
        return config

    def initialize(self, args: dict[str, str]) -> None:
        tell_of_crashes()
        keep_freed_memory()
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"], args["model_version"], file_name(config))
        session = open_session(path, config, args)
        check_config(config, session)
        warn_of_unread(config)
        self.signer = Signer.of(config)
        self.input_names = [tensor["name"] for tensor in config["input"]]
        self.name = args["model_name"]
        self.max_row_length = read_max_row_length(session)
        self.turns = Turns(f"{self.name}-long-batches")
        # The family must live as long as its metric.
        self.metrics, self.background_seconds = open_counter(self.name)
        self.model = BatchedModel(
            session,
            output_names=[tensor["name"] for tensor in config["output"]],
            has_batches=config["max_batch_size"] > 0,
            max_rows_per_run=int_parameter(config, MAX_ROWS, DEFAULT_MAX_ROWS_PER_RUN),
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return the responses to requests of one run each; None stands for a long one, which is answered later."""
        responses: list[Any] = [None] * len(requests)
        short = {}
        for number, request in enumerate(requests):
            feed = self._read_inputs(request)
            if error := self._find_fault(feed):
                responses[number] = to_response(error)
            elif self.model.is_short(feed):
                short[number] = feed
            else:
                # Copied: a tensor's memory belongs to its request, which may be gone once execute() has returned.
                copied = {name: array.copy() for name, array in feed.items()}
                self.turns.submit(self._run_long(copied, request.get_response_sender()))
        if short:
            with self.turns.lock:
                results = self.model.run_each(list(short.values()))
            for (number, feed), result in zip(short.items(), results, strict=True):
                responses[number] = self._respond(feed, result)
        return responses

    def finalize(self) -> None:
        self.turns.close()
        # Triton's stub crashes at the end of the process if a metric is left until then.
        self.background_seconds = self.metrics = None

    def _read_inputs(self, request: Any) -> Tensors:
        return {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.input_names}

    def _find_fault(self, feed: Tensors) -> InvalidRequest | None:
        length = max(array.shape[-1] for array in feed.values())
        if self.max_row_length is None or length <= self.max_row_length:
            return None
        return InvalidRequest(
            f"{self.name} got rows of {length} values; the model was exported for {self.max_row_length}"
        )

    def _run_long(self, feed: Tensors, sender: Any) -> Iterator[None]:
        """Run the feed piece by piece, and reply after the last one, or with the error that ended it."""
        result: Tensors | Exception
        try:
            result = yield from self._run_pieces(feed)
        except Exception as error:  # Whatever it is: without a reply the caller would wait for ever.
            result = error
        sender.send(self._respond(feed, result), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _run_pieces(self, feed: Tensors) -> Generator[None, None, Tensors | Exception]:
        parts: list[Tensors] = []
        for piece in self.model.cut(feed):
            began = time.monotonic()
            [part] = self.model.run_each([piece])
            self.background_seconds.increment(time.monotonic() - began)
            if isinstance(part, Exception):
                return part
            parts.append(part)
            yield
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _respond(self, feed: Tensors, result: Tensors | Exception) -> Any:
        """Return the response with the signed result, or with the error, which may be one of signing or sending."""
        try:
            return to_response(self.signer.sign(feed, result))
        except Exception as error:
            return to_response(error)


@dataclass(frozen=True)
class Signer:
    """Replaces one output by a tag for each row, which binds the row's other outputs to its inputs.

    output: its name, or None if no output is signed. key: of this server, or None if it has none; zeros stay then.
    """

    output: str | None
    key: bytes | None

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Signer":
        output = config["parameters"].get(SIGNATURES, {}).get("string_value")
        names = [tensor["name"] for tensor in config["output"]]
        if output is not None and (output not in names or config["max_batch_size"] == 0):
            raise pb_utils.TritonModelException(
                f"parameter {SIGNATURES} is {output!r}; it must name one of {names}, and the model needs batches"
            )
        return cls(output, load_graph_key())

    def sign(self, feed: Tensors, result: Tensors | Exception) -> Tensors | Exception:
        if isinstance(result, Exception) or self.output is None or self.key is None:
            return result
        outputs = [array for name, array in result.items() if name != self.output]
        return {**result, self.output: sign_rows(self.key, MODEL_OUTPUT, [*feed.values(), *outputs])}


def to_response(result: Tensors | Exception) -> Any:
    if isinstance(result, Exception):
        is_callers_fault = isinstance(result, InvalidRequest) or type(result).__name__ == "InvalidArgument"
        code = pb_utils.TritonError.INVALID_ARG if is_callers_fault else pb_utils.TritonError.INTERNAL
        message = result.to_wire() if isinstance(result, InvalidRequest) else str(result)
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
    tensors = [pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in result.items()]
    return pb_utils.InferenceResponse(tensors)


def open_counter(model_name: str) -> Any:
    """Return the metric for work that Triton's statistics leave out, since they end when execute() returns."""
    family = pb_utils.MetricFamily(
        name="refrag_long_batch_seconds",
        description="Seconds of computing batches that are cut into pieces",
        kind=pb_utils.MetricFamily.COUNTER,
    )
    return family, family.Metric(labels={"model": model_name})


def read_max_row_length(session: Any) -> int | None:
    """Return the longest row that the model was exported for, or None if its file does not say."""
    text = session.get_modelmeta().custom_metadata_map.get("max_row_length")
    return None if text is None else int(text)


def open_session(path: Path, config: dict[str, Any], args: dict[str, str]) -> Any:
    import onnxruntime

    if not path.is_file():
        raise pb_utils.TritonModelException(f"{path} does not exist; export the model into its version folder")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int_parameter(config, NUM_THREADS, default_num_threads(config))
    # Threads that went on spinning after a run would take the cores from the models that come next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    wants_gpu = args["model_instance_kind"] == "GPU"
    providers: list[Any] = ["CPUExecutionProvider"]
    if wants_gpu and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": args["model_instance_device_id"]}))
    # On CPUs its one operator for both takes twice as long as the addition and the normalisation by themselves.
    disabled = [] if len(providers) > 1 else ["SkipLayerNormFusion"]
    session = onnxruntime.InferenceSession(str(path), options, providers=providers, disabled_optimizers=disabled)
    # ONNX Runtime goes on without a provider that it cannot load, so ask what it really uses.
    if wants_gpu and "CUDAExecutionProvider" not in session.get_providers():
        pb_utils.Logger.log_warn(
            f"{args['model_name']} asks for a GPU and runs on the CPU: install onnxruntime-gpu, or set KIND_CPU"
        )
    return session


def default_num_threads(config: dict[str, Any]) -> int:
    """Return the number of cores that this process may use, divided by the model's instances."""
    num_instances = sum(int(group["count"]) for group in config["instance_group"])
    return max(1, len(os.sched_getaffinity(0)) // max(1, num_instances))


def int_parameter(config: dict[str, Any], name: str, default: int) -> int:
    text = config["parameters"].get(name, {}).get("string_value")
    if text is None:
        return default
    if not text.isdecimal() or int(text) == 0:
        raise pb_utils.TritonModelException(f"parameter {name} is {text!r}; it must be a whole number above 0")
    return int(text)


def warn_of_unread(config: dict[str, Any]) -> None:
    if unread := sorted(set(config["parameters"]) - set(PARAMETERS)):
        near = suggestion(unread, PARAMETERS)
        pb_utils.Logger.log_warn(f"{config['name']}: the parameters {unread} are not read on this machine{near}")


def file_name(config: dict[str, Any]) -> str:
    return str(config["default_model_filename"] or "model.onnx")


def check_config(config: dict[str, Any], session: Any) -> None:
    """Raise TritonModelException where config.pbtxt and the ONNX model disagree."""
    graph_inputs = {tensor.name: tensor for tensor in session.get_inputs()}
    graph_outputs = {tensor.name: tensor for tensor in session.get_outputs()}
    for kind, tensors, graph in (("input", config["input"], graph_inputs), ("output", config["output"], graph_outputs)):
        for tensor in tensors:
            check_tensor(kind, tensor, graph, config["max_batch_size"] > 0)
    unfed = sorted(set(graph_inputs) - {tensor["name"] for tensor in config["input"]})
    if unfed:
        raise pb_utils.TritonModelException(f"config.pbtxt lacks the ONNX model's inputs {unfed}; add them")


def check_tensor(kind: str, tensor: dict[str, Any], graph: dict[str, Any], has_batches: bool) -> None:
    name = tensor["name"]
    if name not in graph:
        raise pb_utils.TritonModelException(
            f"config.pbtxt names {kind} {name!r}, which the ONNX model lacks; it has {sorted(graph)}"
        )
    graph_type = TRITON_TYPES.get(graph[name].type)
    if tensor["data_type"] != graph_type:
        remedy = f"write {graph_type}" if graph_type else "export the model with another type, this one is not served"
        raise pb_utils.TritonModelException(
            f"{kind} {name!r} is {tensor['data_type']} in config.pbtxt and {graph[name].type} in the ONNX model; "
            f"{remedy}"
        )
    graph_shape = [size if isinstance(size, int) else -1 for size in graph[name].shape]
    if has_batches and graph_shape[:1] != [-1]:
        raise pb_utils.TritonModelException(
            f"{kind} {name!r} has shape {graph_shape} in the ONNX model; batches need a free first dimension: "
            "export it with a dynamic first dimension, or set max_batch_size: 0"
        )
    dims = tensor.get("reshape", {}).get("shape", tensor["dims"])
    shape = [int(size) for size in ([-1, *dims] if has_batches else dims)]
    if not shapes_agree(shape, graph_shape):
        raise pb_utils.TritonModelException(
            f"{kind} {name!r} has shape {shape} in config.pbtxt, batch included, and {graph_shape} in the ONNX model; "
            "correct its dims"
        )


def shapes_agree(first: list[int], second: list[int]) -> bool:
    """Return whether some tensor can have both shapes; -1 stands for any size."""
    return len(first) == len(second) and all(a == b or -1 in (a, b) for a, b in zip(first, second, strict=True))


def complete_config(config: Any, path: Path) -> None:
    """Add what config.pbtxt leaves out, read from the file, since a session would hold a second set of weights."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    tensors = {
        "input": [describe(value) for value in graph.input if value.name not in weights],
        "output": [describe(value) for value in graph.output],
    }
    written = config.as_dict()
    if not (written["input"] or written["output"] or written["max_batch_size"]) and can_batch(tensors):
        config.set_max_batch_size(DEFAULT_MAX_BATCH_SIZE)
        config.set_dynamic_batching()
    has_batches = config.as_dict()["max_batch_size"] > 0
    for kind, add in (("input", config.add_input), ("output", config.add_output)):
        for tensor in [] if written[kind] else tensors[kind]:
            add({**tensor, "dims": tensor["dims"][1:] if has_batches else tensor["dims"]})


def can_batch(tensors: dict[str, list[dict[str, Any]]]) -> bool:
    return all(tensor["dims"][:1] == [-1] for tensor in [*tensors["input"], *tensors["output"]])


def describe(value: Any) -> dict[str, Any]:
    """Return an ONNX value as the input or output of a config, the batch dimension included."""
    import onnx

    tensor_type = value.type.tensor_type
    onnx_name = onnx.TensorProto.DataType.Name(tensor_type.elem_type)  # FLOAT, FLOAT16, DOUBLE, INT32, …
    triton_type = TRITON_TYPES.get(f"tensor({onnx_name.lower()})")
    if triton_type is None:
        raise pb_utils.TritonModelException(f"{value.name!r} has ONNX type {onnx_name}, which is not served")
    dims = [size.dim_value if size.HasField("dim_value") else -1 for size in tensor_type.shape.dim]
    return {"name": value.name, "data_type": triton_type, "dims": dims}
