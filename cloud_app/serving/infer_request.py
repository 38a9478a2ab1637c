"""Parses an inference request: its bytes -> one checked array and the outputs that are asked for. JSON tensors of the Open
Inference Protocol, and Triton's binary ones.

Sources: kserve/open-inference-protocol, inference_rest.md; triton-inference-server/server,
docs/protocol/extension_binary_data.md and extension_classification.md.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from emo.errors import ServeError

_DTYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("<u1"), "FP32": np.dtype("<f4")}
MAX_BODY = 16 << 20
_AROUND = 64 << 10
_WRITTEN = {"UINT8": len("255, "), "FP32": len("-2.2250738585072014e-308, ")}  # bytes of JSON a value
_LONGEST_ID = 1024
_LONGEST_US = 3_600_000_000
_SHORT = 1024  # bytes of JSON that are remembered


class Refused(ServeError):  # noqa: N818 - as the protocol's answer says it
    """A request that is not answered with a result; `status` is HTTP's, `allow` the methods that there are (405)."""

    def __init__(self, status: int, text: str, allow: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.allow = allow


@dataclass(frozen=True)
class Signature:
    """What one version of a model takes and gives: (batch, *sample) of `datatype` (UINT8 or FP32), batch from 1 to
    `max_batch`; for each name in `outputs` FP32 (batch, *size). `labels`: of the classes, or empty."""

    name: str
    version: int
    input: str
    sample: tuple[int, ...]
    datatype: str
    outputs: dict[str, tuple[int, ...]]
    labels: tuple[str, ...]
    max_batch: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return _DTYPES[self.datatype]

    @cached_property
    def largest(self) -> int:
        """Bytes of the largest request that can be right: `max_batch` samples in JSON, in nested lists, and what goes around
        them. In binary they are fewer."""
        lists = sum(math.prod(self.sample[:at]) for at in range(len(self.sample)))
        sample = math.prod(self.sample) * _WRITTEN[self.datatype] + lists * len("[], ")
        return min(MAX_BODY, _AROUND + self.max_batch * sample)


@dataclass(frozen=True)
class RequestedOutput:
    """One output: as binary or in JSON; `classes`: only that many, the largest first, as VALUE:INDEX:LABEL."""

    name: str
    binary: bool
    classes: int = 0


@dataclass(frozen=True)
class InferRequest:
    """`images`: (batch, *sample) uint8 or float32. `timeout_s`: the client's own limit of time, if it set one."""

    id: str | None
    images: np.ndarray[Any, Any]
    outputs: tuple[RequestedOutput, ...]
    timeout_s: float | None = None


class _Parameters(BaseModel):
    # Others are ignored, as the protocol asks.
    model_config = ConfigDict(strict=True)
    binary_data_size: int | None = Field(None, ge=0)
    shared_memory_region: Any = None


class _Tensor(BaseModel):
    model_config = ConfigDict(strict=True)
    name: str
    shape: list[int]
    datatype: str
    parameters: _Parameters = _Parameters()
    data: list[Any] | None = None


class _OutputParameters(BaseModel):
    model_config = ConfigDict(strict=True)
    binary_data: bool | None = None
    classification: int = Field(0, ge=0)
    shared_memory_region: Any = None


class _Output(BaseModel):
    model_config = ConfigDict(strict=True)
    name: str
    parameters: _OutputParameters = _OutputParameters()


class _RequestParameters(BaseModel):
    model_config = ConfigDict(strict=True)
    binary_data_output: bool = False
    timeout: int | None = Field(None, ge=0, le=_LONGEST_US)


class _Request(BaseModel):
    model_config = ConfigDict(strict=True)
    id: str | None = Field(None, max_length=_LONGEST_ID)
    parameters: _RequestParameters = _RequestParameters()
    inputs: list[_Tensor]
    outputs: list[_Output] | None = None


def parse(body: bytes, takes: Signature, header: int | None = None) -> InferRequest:
    """`header`: Inference-Header-Content-Length, the bytes of JSON before the binary tensors; None where all is JSON,
    0 where all is the one input's values (the answer is binary then).

    Raises Refused (400) on anything but a right request.
    """
    if header == 0:
        batch = len(body) // max(1, _bytes(takes, 1))
        images = _binary(body, (batch, *takes.sample), takes)
        return InferRequest(None, images, tuple(RequestedOutput(name, binary=True) for name in takes.outputs))
    if header is not None and not 0 < header <= len(body):
        raise Refused(400, f"Inference-Header-Content-Length is {header}, the body has {len(body)} bytes")
    try:
        # The JSON before binary values is the same in all requests of a client.
        request = _Request.model_validate_json(body) if header is None else _before_binary(body[:header])
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part)[:40] for part in first["loc"][:6]) or "the body"
        raise Refused(400, f"not an inference request: {place}: {first['msg'][:200]}") from error
    rest = b"" if header is None else body[header:]
    timeout = request.parameters.timeout
    return InferRequest(
        request.id,
        _images(request.inputs, rest, takes),
        _outputs(request.outputs, takes, binary=request.parameters.binary_data_output),
        timeout / 1e6 if timeout else None,  # Triton's microseconds; 0 is none
    )


def _before_binary(head: bytes) -> _Request:
    return _remembered(head) if len(head) <= _SHORT else _Request.model_validate_json(head)


@lru_cache(256)
def _remembered(head: bytes) -> _Request:
    return _Request.model_validate_json(head)


def _outputs(asked: list[_Output] | None, takes: Signature, *, binary: bool) -> tuple[RequestedOutput, ...]:
    if not asked:
        return tuple(RequestedOutput(name, binary) for name in takes.outputs)
    names = [each.name for each in asked]
    if len(set(names)) < len(names) or any(name not in takes.outputs for name in names):
        shown = [name[:40] for name in names[:8]]
        raise Refused(400, f"outputs: ask for each of {', '.join(takes.outputs)} at most once, found {shown}")
    requested = []
    for each in asked:
        wants = each.parameters
        if wants.shared_memory_region is not None:
            raise Refused(400, f"output {each.name}: shared memory is not offered here")
        if wants.classification and len(takes.outputs[each.name]) != 1:
            raise Refused(400, f"output {each.name}: has no classes, its shape is {takes.outputs[each.name]}")
        as_binary = binary if wants.binary_data is None else wants.binary_data
        requested.append(RequestedOutput(each.name, as_binary, wants.classification))
    return tuple(requested)


def _images(inputs: list[_Tensor], rest: bytes, takes: Signature) -> np.ndarray[Any, Any]:
    if [each.name for each in inputs] != [takes.input]:
        shown = [each.name[:40] for each in inputs[:8]]
        raise Refused(400, f"inputs: the model takes one, {takes.input!r}; found {shown}")
    tensor = inputs[0]
    if tensor.parameters.shared_memory_region is not None:
        raise Refused(400, f"{takes.input}: shared memory is not offered here; send the values")
    if tensor.datatype != takes.datatype:
        raise Refused(400, f"{takes.input}: datatype {tensor.datatype[:16]!r}, the model takes {takes.datatype}")
    shape = tuple(tensor.shape)
    size = tensor.parameters.binary_data_size
    if size is None:
        _check(shape, takes)
        if tensor.data is None:
            raise Refused(400, f"{takes.input}: neither data nor binary_data_size is given")
        if rest:
            raise Refused(400, f"{len(rest)} bytes follow the JSON, and no input has a binary_data_size")
        values = _flat(tensor.data, shape)
        if values is None:
            raise Refused(400, f"{takes.input}: data must be flat, or nested as shape {list(shape)} says")
        return _array(values, takes).reshape(shape)
    if tensor.data is not None:
        raise Refused(400, f"{takes.input}: has data and binary_data_size; give one of them")
    if size != len(rest):
        raise Refused(
            400,
            f"{takes.input}: binary_data_size is {size}, {len(rest)} bytes follow the JSON; is the header "
            "Inference-Header-Content-Length right?",
        )
    return _binary(rest, shape, takes)


def _check(shape: tuple[int, ...], takes: Signature) -> None:
    if not shape or shape[1:] != takes.sample or not 1 <= shape[0] <= takes.max_batch:
        wanted = [f"1..{takes.max_batch}", *takes.sample]
        shown = [min(max(size, -1), 10**18) for size in shape[:8]]  # an integer of JSON has no bound
        raise Refused(400, f"{takes.input}: shape {shown}, the model takes {wanted}")


def _bytes(takes: Signature, batch: int) -> int:
    return batch * math.prod(takes.sample) * takes.dtype.itemsize


def _binary(data: bytes, shape: tuple[int, ...], takes: Signature) -> np.ndarray[Any, Any]:
    _check(shape, takes)
    if len(data) != _bytes(takes, shape[0]):
        raise Refused(400, f"{takes.input}: {len(data)} bytes, shape {list(shape)} has {_bytes(takes, shape[0])}")
    images = np.frombuffer(data, takes.dtype).reshape(shape)
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise Refused(400, f"{takes.input}: data must be finite numbers of 32 bits")
    return images


def _array(values: list[Any], takes: Signature) -> np.ndarray[Any, Any]:
    # By hand: numpy would take strings and booleans, and make one array as wide as the longest string.
    kinds = set(map(type, values))
    if takes.datatype == "UINT8":
        if kinds != {int} or min(values) < 0 or max(values) > 255:
            raise Refused(400, f"{takes.input}: data must be integers from 0 to 255")
        return np.array(values, np.uint8)
    # Compared as Python's numbers, whose integers have no bound. Not `max(...) > limit`: NaN has no order.
    limit = float(np.finfo(np.float32).max)
    if not kinds <= {int, float} or not all(-limit <= value <= limit for value in values):
        raise Refused(400, f"{takes.input}: data must be finite numbers of 32 bits")
    return np.array(values, np.float32)


def _flat(data: list[Any], shape: tuple[int, ...]) -> list[Any] | None:
    """`data` as one flat list, row by row; None unless it is flat already or nested exactly as `shape`."""
    if len(data) == math.prod(shape) and type(data[0]) is not list:
        return data
    if len(data) != shape[0]:
        return None
    for size in shape[1:]:
        if not all(type(row) is list and len(row) == size for row in data):
            return None
        data = list(chain.from_iterable(data))
    return data
