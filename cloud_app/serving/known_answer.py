"""A stored request with its known answer: is this version, on this machine, still the model that was exported? Both are stored
in the protocol's JSON."""

import json
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from cloud_app.serving.infer_response import finite
from cloud_app.serving.model import Served
from emo.errors import ServeError

TOLERANCE = 1e-2  # of the largest value: other processors round otherwise, most of all in int8
_SAMPLES = 2


class _Output(BaseModel):
    model_config = ConfigDict(strict=True)
    name: str
    data: list[float]


class _Answer(BaseModel):
    outputs: list[_Output]


class _Stored(BaseModel):
    request: dict[str, object]
    answer: _Answer


def make(onnx: Path) -> str:
    """The self-test of the ONNX file: two samples of noise (uint8 over its range, float32 standard normal) and
    what this machine answers. Raises ServeError when the endpoint could not serve the file."""
    served = Served.open(onnx, "selftest", 1, ())
    takes = served.signature
    drawn = np.random.default_rng(0)
    shape = (_SAMPLES, *takes.sample)
    images = drawn.integers(0, 256, shape) if takes.datatype == "UINT8" else drawn.standard_normal(shape).round(4)
    tensor = {
        "name": takes.input,
        "shape": shape,
        "datatype": takes.datatype,
        "data": images.ravel().tolist(),
    }
    # By name: an endpoint from before there were members' answers would give those, too.
    request = {"inputs": [tensor], "outputs": [{"name": name} for name in takes.outputs]}
    answer = json.loads(served.infer(json.dumps(request).encode()))
    return json.dumps({"request": request, "answer": {"outputs": answer["outputs"]}})


def check(served: Served, stored: str | None) -> None:
    """Raises ServeError when `served` does not give the stored answer within TOLERANCE, or, where nothing is stored,
    no finite answer to zeros."""
    where = f"model {served.signature.name!r} version {served.signature.version}: self-test"
    try:
        if stored is None:
            _zeros(served)
        else:
            _compare(served, _Stored.model_validate_json(stored))
    except ValidationError as error:
        raise ServeError(f"{where}: selftest.json is damaged: {error.errors()[0]['msg']}") from error
    except ServeError as error:
        raise ServeError(f"{where}: {error}") from error
    except Exception as error:  # onnxruntime's errors share no class of their own
        raise ServeError(f"{where}: onnxruntime fails: {' '.join(str(error).split())[:300]}") from error


def _zeros(served: Served) -> None:
    if not finite(served.run(np.zeros((1, *served.signature.sample), served.signature.dtype))):
        raise ServeError("no finite answer to an input of zeros")


def _compare(served: Served, test: _Stored) -> None:
    actual = _Answer.model_validate_json(served.infer(json.dumps(test.request).encode()))
    if [each.name for each in test.answer.outputs] != [each.name for each in actual.outputs]:
        raise ServeError("the model has other outputs than when it was stored")
    for wanted, got in zip(test.answer.outputs, actual.outputs, strict=True):
        expected, values = np.array(wanted.data), np.array(got.data)
        if expected.shape != values.shape:
            raise ServeError(f"{got.name} has {values.size} values, {expected.size} are stored")
        off = np.abs(expected - values).max(initial=0.0) / max(1.0, np.abs(expected).max(initial=0.0))
        if not off <= TOLERANCE:  # so that NaN fails too
            raise ServeError(
                f"{got.name} is off by {off:.2g} of the largest value; the file or this machine's onnxruntime is not "
                "what it was exported with"
            )
