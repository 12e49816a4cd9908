"""Conversion of requests to Triton messages, and of response tensors to Python values."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tritonclient.grpc import InferResult, service_pb2
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from refrag_client.errors import InvalidRequest, ServerError
from refrag_client.request import GenerateRequest, Tensor, tensors_by_option


def encode_request(request: GenerateRequest, model: str) -> service_pb2.ModelInferRequest:
    """Return the message that asks `model` for an answer; raise InvalidRequest for a value that no tensor can hold."""
    message = _new_message(model, request.request_id)
    for option, tensor in tensors_by_option().items():
        value = getattr(request, option)
        if value is not None and value != ():
            _add_tensor(message, tensor.name or option, tensor.datatype, _encode(option, tensor, value))
    return message


def encode_stop(request_id: str, model: str) -> service_pb2.ModelInferRequest:
    """Return the message that makes the decoder `model` stop the request with this id."""
    message = _new_message(model, request_id)
    _add_tensor(message, "stop", "BOOL", np.array([True]))
    return message


def encode_inputs(model: str, inputs: Mapping[str, np.ndarray]) -> service_pb2.ModelInferRequest:
    """Return a message with these tensors, for models that give no answer to a question."""
    message = service_pb2.ModelInferRequest(model_name=model)
    for name, array in inputs.items():
        _add_tensor(message, name, np_to_triton_dtype(array.dtype), array)
    return message


class Response:
    """The outputs of one response, by name; a method raises ServerError for a tensor that is not there."""

    def __init__(self, message: service_pb2.ModelInferResponse) -> None:
        self._result = InferResult(message)

    def text(self, name: str) -> str:
        return bytes(self.array(name)[0]).decode("utf-8", errors="replace")

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(bytes(each).decode("utf-8", errors="replace") for each in self.array(name))

    def has(self, name: str) -> bool:
        return self._result.get_output(name) is not None

    def number(self, name: str) -> int:
        return int(self.array(name)[0])

    def numbers(self, name: str) -> tuple[int, ...]:
        return tuple(self.array(name).tolist())

    def reals(self, name: str) -> tuple[float, ...]:
        return tuple(self.array(name).tolist())

    def rows(self, name: str) -> tuple[tuple[int, ...], ...]:
        return tuple(map(tuple, self.array(name).tolist()))

    def array(self, name: str) -> np.ndarray:
        array: np.ndarray | None = self._result.as_numpy(name)
        if array is None:
            raise ServerError(f"the response has no tensor {name!r}; client and server are of different releases")
        return array


def _new_message(model: str, request_id: str) -> service_pb2.ModelInferRequest:
    message = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    # Without this, a stream whose last response carries data never says that it was the last.
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    return message


def _add_tensor(message: service_pb2.ModelInferRequest, name: str, datatype: str, array: np.ndarray) -> None:
    message.inputs.add(name=name, datatype=datatype, shape=array.shape)
    message.raw_input_contents.append(_to_bytes(datatype, array))


def _to_bytes(datatype: str, array: np.ndarray) -> bytes:
    if datatype != "BYTES":
        return array.tobytes()
    return serialize_byte_tensor(array).item() if array.size else b""


def _encode(option: str, tensor: Tensor, value: Any) -> np.ndarray:
    values = value if isinstance(value, tuple) else (value,)
    to_item, dtype = _ITEMS[tensor.datatype]
    if tensor.is_json:
        values = tuple(_to_json(option, each) for each in values)
    return np.array([to_item(option, each) for each in values], dtype=dtype)


def _to_utf8(option: str, value: Any) -> bytes:
    if not isinstance(value, str):
        raise InvalidRequest(f"{option} holds a {type(value).__name__}; give str")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{option} has a lone surrogate at character {error.start}, which UTF-8 cannot hold; decode the text again"
        ) from None


def _to_json(option: str, value: Any) -> str:
    if not isinstance(value, Mapping):
        raise InvalidRequest(
            f'{option} holds a {type(value).__name__}; give {{"role": …, "content": …}} for each turn, or str for all'
        )
    try:
        return json.dumps(dict(value), ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{option} holds what JSON cannot: {error}; give str for role and content") from None


def _to_int(option: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InvalidRequest(f"{option} is {value!r}; give an int")
    if not low <= value <= high:
        raise InvalidRequest(f"{option} is {value}, allowed is {low} to {high}; give a number within")
    return int(value)


def _to_int64(option: str, value: Any) -> int:
    return _to_int(option, value, -(2**63), 2**63 - 1)


def _to_uint64(option: str, value: Any) -> int:
    return _to_int(option, value, 0, 2**64 - 1)


def _to_float32(option: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)):
        raise InvalidRequest(f"{option} is {value!r}; give a number")
    number, limit = float(value), float(np.finfo(np.float32).max)
    if math.isfinite(number) and abs(number) > limit:
        raise InvalidRequest(f"{option} is {value}, allowed is up to ±{limit:.3g}; give a number within")
    sent = float(np.float32(number))
    # Next to 0 and 1, where limits are, rounding would change what is asked for: greedy instead of hardly random.
    if sent != number and sent.is_integer() and abs(number) < 2:
        raise InvalidRequest(
            f"{option} is {value!r}, and FP32 can only hold {sent:g} there; give that, or fewer digits"
        )
    return number


def _to_bool(option: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidRequest(f"{option} is {value!r}; give True or False")
    return bool(value)


_ITEMS: dict[str, tuple[Callable[[str, Any], Any], Any]] = {
    "BYTES": (_to_utf8, np.object_),
    "INT64": (_to_int64, np.int64),
    "UINT64": (_to_uint64, np.uint64),
    "FP32": (_to_float32, np.float32),
    "BOOL": (_to_bool, np.bool_),
}
