"""One version of a model, loaded: what it takes, what it says of itself, and its answers.

Knows a repository, a session and the Open Inference Protocol, version 2; knows no HTTP and imports no web
framework. Source: github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cloud_app.answer import answer, finite, not_finite
from cloud_app.repository import MAX_BATCH, Repository
from cloud_app.request import Signature, parse
from cloud_app.session import open_session
from emo.errors import ServeError

# onnxruntime's name -> the protocol's
_TYPES = {"tensor(uint8)": "UINT8", "tensor(float)": "FP32"}


@dataclass(frozen=True)
class Served:
    """`session`: onnxruntime's. `run` and `infer` may be called from any thread."""

    signature: Signature
    session: Any
    metadata: dict[str, Any]
    config: dict[str, Any]

    @classmethod
    def load(
        cls, repository: Repository, name: str, threads: int | None, version: int | None = None
    ) -> "Served":
        """The version that the repository names current, or `version`. Raises ServeError when it is not one that this
        endpoint can serve."""
        version = repository.current(name) if version is None else version
        return cls.open(repository.path(name, version), name, version, repository.labels(name), threads)

    @classmethod
    def open(
        cls, path: Path, name: str, version: int, labels: tuple[str, ...], threads: int | None = None
    ) -> "Served":
        """The ONNX file at `path`. Raises ServeError as `load` does."""
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
        signature = Signature(
            name,
            version,
            inputs[0].name,
            tuple(inputs[0].shape[1:]),
            _TYPES[inputs[0].type],
            {each.name: tuple(each.shape[1:]) for each in outputs},
            labels,
            MAX_BATCH,
        )
        parameters = {**session.get_modelmeta().custom_metadata_map, "labels": list(labels)}
        return cls(signature, session, _metadata(signature, parameters), _config(signature))

    def run(self, images: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """(batch, *sample) -> every output, float32 (batch, *size)."""
        return dict(
            zip(self.signature.outputs, self.session.run(None, {self.signature.input: images}), strict=True)
        )

    def infer(self, body: bytes, header: int | None = None) -> bytes:
        """The answer to an inference request; `header` as in `request.parse`. Raises Refused (400) on anything but a
        right one."""
        call = parse(body, self.signature, header)
        results = self.run(call.images)
        if not finite(results):
            raise not_finite()
        return answer(call, results, self.signature)[0]


def _metadata(of: Signature, parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": of.name,
        "versions": [str(of.version)],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": of.input, "datatype": of.datatype, "shape": [-1, *of.sample]}],
        "outputs": [
            {"name": name, "datatype": "FP32", "shape": [-1, *size]} for name, size in of.outputs.items()
        ],
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
            {"name": name, "data_type": "TYPE_FP32", "dims": list(size), **labels}
            for name, size in of.outputs.items()
        ],
        "dynamic_batching": {},
    }
