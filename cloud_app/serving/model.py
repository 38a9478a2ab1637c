"""One version of a model, loaded: its signature, its metadata, and its answers to inference requests.

Source: github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cloud_app.serving.infer_request import Signature, parse
from cloud_app.serving.infer_response import answer, finite, not_finite
from cloud_app.serving.onnx_session import RunOptions, open_session
from cloud_app.serving.repository import Repository
from cloud_app.serving.triton_config import MAX_BATCH
from emo.errors import ServeError
from emo.logs import printable

# An output (batch, answers, classes) beside those that are served to all who ask: each member's own probabilities.
MEMBERS = "member_probabilities"
_MAX_METADATA = 1 << 20  # which goes out with every question about the model
# onnxruntime's name -> the protocol's
_TYPES = {"tensor(uint8)": "UINT8", "tensor(float)": "FP32"}


@dataclass(frozen=True)
class Served:
    """`session`: onnxruntime's. `digest`: of its file, where a repository had it. `answers`: who has a row of MEMBERS; nobody in
    a file without it. `run`, `run_all` and `infer` may be called from any thread."""

    signature: Signature
    session: Any
    metadata: dict[str, Any]
    config: dict[str, Any]
    digest: str = ""
    answers: tuple[str, ...] = ()

    @classmethod
    def load(
        cls, repository: Repository, name: str, version: int, threads: int | None, digest: str | None = None
    ) -> "Served":
        """Raises ServeError when it is not one that this endpoint can serve, or its file has not this `digest`."""
        content = repository.model(name, version)
        actual = hashlib.sha256(content).hexdigest()
        path = repository.path(name, version)
        if digest not in {None, actual}:
            raise ServeError(f"{path}: has changed since it was tested; a version must not")
        served = cls.open(path, name, version, repository.labels(name), threads, content)
        return replace(served, digest=actual)

    @classmethod
    def open(
        cls,
        path: Path,
        name: str,
        version: int,
        labels: tuple[str, ...],
        threads: int | None = None,
        content: bytes | None = None,
    ) -> "Served":
        """The ONNX file at `path`, or its `content`. Raises ServeError as `load` does."""
        session = open_session(path, threads, content)
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
        about = session.get_modelmeta().custom_metadata_map
        if sum(len(key) + len(value) for key, value in about.items()) > _MAX_METADATA:
            raise ServeError(f"{path}: has over {_MAX_METADATA:,} characters of metadata")
        sizes = {each.name: tuple(each.shape[1:]) for each in outputs}
        answers = _answers(about, sizes)
        if answers:
            del sizes[MEMBERS]
        signature = Signature(
            name,
            version,
            inputs[0].name,
            tuple(inputs[0].shape[1:]),
            _TYPES[inputs[0].type],
            sizes,
            labels,
            MAX_BATCH,
        )
        parameters = {**about, "labels": list(labels)}
        return cls(signature, session, _metadata(signature, parameters), _config(signature), answers=answers)

    def run(self, images: np.ndarray[Any, Any], options: RunOptions | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """(batch, *sample) -> every output of the signature, float32 (batch, *size)."""
        return self._run(list(self.signature.outputs), images, options)

    def run_all(
        self, images: np.ndarray[Any, Any], options: RunOptions | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """As `run`, and where there are `answers` MEMBERS (batch, answers, classes)."""
        return self._run([*self.signature.outputs, *[MEMBERS] * bool(self.answers)], images, options)

    def _run(
        self, names: list[str], images: np.ndarray[Any, Any], options: RunOptions | None
    ) -> dict[str, np.ndarray[Any, Any]]:
        results = self.session.run(names, {self.signature.input: images}, options)
        return dict(zip(names, results, strict=True))

    def infer(self, body: bytes, header: int | None = None) -> bytes:
        """The answer to an inference request; `header` as in `request.parse`. Raises Refused (400) on anything but a
        right one."""
        call = parse(body, self.signature, header)
        results = self.run(call.images)
        if not finite(results):
            raise not_finite()
        return answer(call, results, self.signature)[0]


def _answers(about: Mapping[str, str], sizes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Empty where the file has none, or its names do not fit them; MEMBERS is then an output as any other."""
    try:
        names = json.loads(about.get("answers", ""))
    except (ValueError, RecursionError):
        return ()
    if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
        return ()
    fits = sizes.get(MEMBERS) == (len(names), *sizes.get("probabilities", ()))
    return tuple(printable(each) for each in names) if fits and len(sizes) > 1 else ()


def _metadata(of: Signature, parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": of.name,
        "versions": [str(of.version)],
        "platform": "onnx_onnxv1",  # as the protocol names it; Triton's configuration has its own word
        "inputs": [{"name": of.input, "datatype": of.datatype, "shape": [-1, *of.sample]}],
        "outputs": [{"name": name, "datatype": "FP32", "shape": [-1, *size]} for name, size in of.outputs.items()],
        "parameters": parameters,
    }


def _config(of: Signature) -> dict[str, Any]:
    """As Triton's model configuration extension shows it."""
    labels = {"label_filename": "labels.txt"} if of.labels else {}
    return {
        "name": of.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": of.max_batch,
        "input": [{"name": of.input, "data_type": f"TYPE_{of.datatype}", "dims": list(of.sample)}],
        "output": [
            {"name": name, "data_type": "TYPE_FP32", "dims": list(size), **labels} for name, size in of.outputs.items()
        ],
        "dynamic_batching": {},
    }
