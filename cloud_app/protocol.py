"""The Open Inference Protocol, version 2: a request's bytes -> a model's answer in bytes.

Knows JSON tensors, what a model takes and HTTP's status codes; opens no socket and imports no web framework.
Source: github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md.
"""

import json
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from cloud_app.repository import MAX_BATCH, Repository
from cloud_app.session import open_session
from emo.errors import ServeError

# onnxruntime's name -> the protocol's
_TYPES = {"tensor(uint8)": "UINT8", "tensor(float)": "FP32"}


class Refused(ServeError):  # noqa: N818 - as the protocol's answer says it
    """A request that is not answered with a result; `status` is HTTP's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Tensor(BaseModel):
    model_config = ConfigDict(strict=True)
    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class _Output(BaseModel):
    model_config = ConfigDict(strict=True)
    name: str


class _Request(BaseModel):
    # Other fields are ignored, as the protocol asks: parameters are for extensions, and we declare none.
    model_config = ConfigDict(strict=True)
    id: str | None = None
    inputs: list[_Tensor]
    outputs: list[_Output] | None = None


@dataclass(frozen=True)
class Served:
    """One version of one model, loaded. Its input is (batch, *sample) of `datatype` (UINT8 or FP32)."""

    name: str
    version: int
    session: Any
    input: str
    sample: tuple[int, ...]
    datatype: str
    outputs: tuple[str, ...]
    metadata: dict[str, Any]

    @classmethod
    def load(cls, repository: Repository, name: str, threads: int | None) -> "Served":
        """The newest version. Raises ServeError when it is not one that this endpoint can serve."""
        version = repository.latest(name)
        path = repository.path(name, version)
        session = open_session(path, threads)
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1:
            raise ServeError(f"{path}: has {len(inputs)} inputs, the endpoint serves models with one")
        for tensor, types in (inputs[0], _TYPES), *((each, ["tensor(float)"]) for each in outputs):
            fixed = tensor.shape and all(isinstance(size, int) for size in tensor.shape[1:])
            if tensor.type not in types or not fixed or isinstance(tensor.shape[0], int):
                raise ServeError(
                    f"{path}: {tensor.name} is {tensor.type} {tensor.shape}; the endpoint serves {' or '.join(types)} "
                    "whose first size, and no other, is left open for the batch"
                )
        parameters = dict(session.get_modelmeta().custom_metadata_map)
        metadata = {
            "name": name,
            "versions": [str(version)],
            "platform": "onnxruntime_onnx",
            "inputs": [_describe(tensor) for tensor in inputs],
            "outputs": [_describe(tensor) for tensor in outputs],
            "parameters": {**parameters, "labels": list(repository.labels(name))},
        }
        datatype, sample = _TYPES[inputs[0].type], tuple(inputs[0].shape[1:])
        names = tuple(tensor.name for tensor in outputs)
        return cls(name, version, session, inputs[0].name, sample, datatype, names, metadata)

    def infer(self, body: bytes) -> bytes:
        """The answer to an inference request, both JSON. Raises Refused (400) on anything but a right one."""
        try:
            request = _Request.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "the body"
            raise Refused(400, f"not an inference request: {place}: {first['msg']}") from error
        wanted = self._wanted(request.outputs)
        results = self.session.run(wanted, {self.input: self._tensor(request.inputs)})
        if not all(np.isfinite(result).all() for result in results):
            raise Refused(
                400, "the model has no finite answer to these values; are they in the training data's units?"
            )
        answer: dict[str, Any] = {"model_name": self.name, "model_version": str(self.version)}
        if request.id is not None:
            answer["id"] = request.id
        answer["outputs"] = [
            {"name": name, "datatype": "FP32", "shape": list(result.shape), "data": result.ravel().tolist()}
            for name, result in zip(wanted, results, strict=True)
        ]
        text = json.dumps(answer, allow_nan=False)
        return text.encode()

    def _wanted(self, asked: list[_Output] | None) -> list[str]:
        names = [each.name for each in asked or ()] or list(self.outputs)
        unknown = [name for name in names if name not in self.outputs]
        if unknown or len(set(names)) < len(names):
            raise Refused(
                400, f"outputs: ask for each of {', '.join(self.outputs)} at most once, found {names[:8]}"
            )
        return names

    def _tensor(self, inputs: list[_Tensor]) -> np.ndarray[Any, Any]:
        if [each.name for each in inputs] != [self.input]:
            raise Refused(
                400, f"inputs: the model takes one, {self.input!r}; found {[i.name for i in inputs][:8]}"
            )
        tensor = inputs[0]
        if tensor.datatype != self.datatype:
            raise Refused(
                400, f"{self.input}: datatype {tensor.datatype[:16]!r}, the model takes {self.datatype}"
            )
        shape = tuple(tensor.shape)
        if not shape or shape[1:] != self.sample or not 1 <= shape[0] <= MAX_BATCH:
            takes = ["1.." + str(MAX_BATCH), *self.sample]
            raise Refused(400, f"{self.input}: shape {list(shape)[:8]}, the model takes {takes}")
        values = _flat(tensor.data, shape)
        if values is None:
            raise Refused(400, f"{self.input}: data must be flat, or nested as shape {list(shape)} says")
        return self._array(values).reshape(shape)

    def _array(self, values: list[Any]) -> np.ndarray[Any, Any]:
        # By hand: numpy would take strings and booleans, and make one array as wide as the longest string.
        kinds = set(map(type, values))
        if self.datatype == "UINT8":
            if kinds != {int} or min(values) < 0 or max(values) > 255:
                raise Refused(400, f"{self.input}: data must be integers from 0 to 255")
            return np.array(values, np.uint8)
        # Compared as Python's numbers, whose integers have no bound. Not `max(...) > limit`: NaN has no order.
        limit = float(np.finfo(np.float32).max)
        if not kinds <= {int, float} or not all(-limit <= value <= limit for value in values):
            raise Refused(400, f"{self.input}: data must be finite numbers of 32 bits")
        return np.array(values, np.float32)


def _describe(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": _TYPES[tensor.type], "shape": [-1, *tensor.shape[1:]]}


def _flat(data: list[Any], shape: tuple[int, ...]) -> list[Any] | None:
    """`data` as one flat list, row by row; None unless it is flat already or nested exactly as `shape`."""
    if len(data) == np.prod(shape) and type(data[0]) is not list:
        return data
    if len(data) != shape[0]:
        return None
    for size in shape[1:]:
        if not all(type(row) is list and len(row) == size for row in data):
            return None
        data = list(chain.from_iterable(data))
    return data
