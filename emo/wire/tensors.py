"""Reads weights off a wire: safetensors bytes -> arrays, counted and measured before the first is made.

The safetensors library takes a header of 100 MB, makes an object of each entry and lets no other thread run meanwhile.
"""

import json
import math
from typing import Any

import numpy as np

from emo.errors import FrameError
from emo.wire.limits import Limit

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "|u1", "BOOL": "|b1"}
_MAX_DIMS = 16


def load(data: memoryview, limit: Limit) -> dict[str, np.ndarray]:
    """Name -> array, copied, in the order of their bytes. Raises FrameError on bytes that are no safetensors file, on a
    header or a number of tensors over `limit`, and on bytes that belong to no tensor or to two."""
    size = int.from_bytes(data[:8], "little") if len(data) >= 8 else len(data) + 1
    if size > min(limit.names, len(data) - 8):
        raise FrameError(
            f"weights of {len(data)} bytes with a header of {size}; {limit.names} is the most for the "
            f"{limit.tensors} tensors that there may be"
        )
    try:
        header = json.loads(bytes(data[8 : 8 + size]))
    except (ValueError, RecursionError) as error:
        raise FrameError("weights are not safetensors: their header is not JSON") from error
    if not isinstance(header, dict):
        raise FrameError("weights are not safetensors: their header is no object")
    header.pop("__metadata__", None)
    if len(header) > limit.tensors:
        raise FrameError(f"weights of {len(header)} tensors; {limit.tensors} is the most")
    entries = sorted((_entry(name, entry) for name, entry in header.items()), key=lambda entry: entry[:2])
    body, at, arrays = data[8 + size :], 0, dict[str, np.ndarray]()
    for start, end, name, dtype, shape in entries:
        if start != at or end > len(body):
            raise FrameError(f"weights are not safetensors: the bytes of {name!r} overlap, or leave a gap")
        arrays[name] = _array(body[start:end], name, dtype, shape)
        at = end
    if at != len(body):
        raise FrameError(f"weights are not safetensors: {len(body) - at} bytes belong to no tensor")
    return arrays


def _entry(name: str, entry: Any) -> tuple[int, int, str, np.dtype[Any], list[int]]:
    """Where a tensor begins and ends, its name, dtype and shape."""
    try:
        dtype, shape, (start, end) = np.dtype(_DTYPES[entry["dtype"]]), entry["shape"], entry["data_offsets"]
        whole = isinstance(shape, list) and all(type(n) is int and 0 <= n < 2**40 for n in (start, end, *shape))
    except (KeyError, TypeError, ValueError) as error:
        kinds = ", ".join(_DTYPES)
        raise FrameError(f"{name!r} is no tensor of safetensors, or of none of the dtypes {kinds}") from error
    if not whole or len(shape) > _MAX_DIMS or end - start != math.prod(shape) * dtype.itemsize:
        raise FrameError(f"{name!r} does not have the bytes that its shape makes")
    return start, end, name, dtype, shape


def _array(data: memoryview, name: str, dtype: np.dtype[Any], shape: list[int]) -> np.ndarray:
    try:
        array = np.frombuffer(data, dtype).reshape(shape)
    except ValueError as error:  # without a byte, and with dims whose product is too much for numpy
        raise FrameError(f"{name!r} has an impossible shape: {error}") from error
    return array.view(np.uint8) != 0 if dtype == np.bool_ else array.copy()
