"""Numpy tensors as they cross the wire → plain Python values, with errors that name the tensor."""

from collections.abc import Mapping, Sequence

import numpy as np

from refrag.errors import InvalidRequest

Tensors = Mapping[str, np.ndarray]

# By the input that holds most of what is too much.
REMEDIES = {
    "text_input": "shorten the question",
    "passages": "send fewer or shorter passages",
    "history": "send fewer or shorter turns",
    "documents": "send fewer or shorter documents at a time",
}


def scalar(tensors: Tensors, name: str) -> int | float | bool | None:
    """Return the one element of an optional tensor, None if absent; raise InvalidRequest unless there is just one.

    Of FP32 the shortest number that it stands for: what was sent as 0.01, and not 0.00999999977648258.
    """
    if name not in tensors:
        return None
    element = _only_element(tensors[name], name)
    return float(str(element)) if element.dtype == np.float32 else element.item()


def integer(tensors: Tensors, name: str) -> int | None:
    value = scalar(tensors, name)
    return None if value is None else int(value)


def flag(tensors: Tensors, name: str, default: bool) -> bool:
    value = scalar(tensors, name)
    return default if value is None else bool(value)


def text(tensors: Tensors, name: str) -> str | None:
    """Return the one string of an optional BYTES tensor as `scalar` does; raise InvalidRequest if it is not UTF-8."""
    if name not in tensors:
        return None
    return _decode(_only_element(tensors[name], name), name)


def texts(tensors: Tensors, name: str) -> list[str]:
    """Return all strings of an optional BYTES tensor, [] if absent; raise InvalidRequest for one that is not UTF-8."""
    if name not in tensors:
        return []
    return [_decode(value, f"{name}[{index}]") for index, value in enumerate(tensors[name].reshape(-1))]


def check_bytes(tensors: Tensors, names: Sequence[str], limit: int) -> None:
    """Raise InvalidRequest if the named BYTES tensors hold more than `limit` bytes together."""
    sizes = {name: sum(map(len, tensors[name].reshape(-1))) if name in tensors else 0 for name in names}
    if (size := sum(sizes.values())) > limit:
        remedy = REMEDIES[max(sizes, key=lambda name: sizes[name])]
        raise InvalidRequest(f"{' and '.join(names)} hold {size} bytes, the limit is {limit}; {remedy}")


def check_range(name: str, values: np.ndarray, limit: int, reason: str, lowest: int = 0) -> None:
    """Raise InvalidRequest unless all values lie between `lowest` and `limit` - 1."""
    if values.size and (values.min() < lowest or values.max() >= limit):
        raise InvalidRequest(
            f"{name} ranges from {values.min()} to {values.max()}; allowed is {lowest} to {limit - 1}: {reason}"
        )


def _only_element(tensor: np.ndarray, name: str):  # type: ignore[no-untyped-def]
    if tensor.size != 1:
        raise InvalidRequest(f"{name} has shape {list(tensor.shape)}; it must hold exactly one element")
    return tensor.reshape(-1)[0]


def _decode(value: bytes | str, name: str) -> str:
    if isinstance(value, str):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{name} is not valid UTF-8 (byte {value[error.start]:#04x} at offset {error.start}); send UTF-8 text"
        ) from None


def strings(*values: str) -> np.ndarray:
    """Return a BYTES tensor of the values."""
    return np.array([value.encode() for value in values], dtype=np.object_)


def int32(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def float32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)
