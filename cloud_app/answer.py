"""A model's results -> the bytes of an inference answer.

Knows the protocol's JSON tensors, Triton's binary and classification extensions; knows neither HTTP nor
onnxruntime. Sources: as in `cloud_app.request`.
"""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from cloud_app.request import Call, Refused, Signature


def answer(
    call: Call, results: Mapping[str, np.ndarray[Any, Any]], gave: Signature
) -> tuple[bytes, int | None]:
    """The body, and how many of its bytes are JSON where binary tensors follow (else None).

    `results`: float32 (batch, *size) for every output that `call` asks for, all of them `finite`.
    """
    if call.id is None and all(asked.binary and not asked.classes for asked in call.outputs):
        datas = [np.ascontiguousarray(results[asked.name], "<f4").tobytes() for asked in call.outputs]
        shapes = tuple((asked.name, results[asked.name].shape) for asked in call.outputs)
        head = _binary_head(gave.name, gave.version, shapes)
        return b"".join([head, *datas]), len(head)
    outputs, parts = [], []
    for asked in call.outputs:
        result = results[asked.name]
        entry: dict[str, Any] = {"name": asked.name, "datatype": "FP32", "shape": list(result.shape)}
        if asked.classes:
            best = _classes(result, asked.classes, gave.labels)
            entry |= {"datatype": "BYTES", "shape": [len(best), len(best[0])]}
            texts = [text for row in best for text in row]
            data = b"".join(len(raw).to_bytes(4, "little") + raw for raw in map(str.encode, texts))
        elif asked.binary:
            data = np.ascontiguousarray(result, "<f4").tobytes()
        if asked.binary:
            entry["parameters"] = {"binary_data_size": len(data)}
            parts.append(data)
        else:
            entry["data"] = texts if asked.classes else result.ravel().tolist()
        outputs.append(entry)
    head = _head(gave.name, gave.version, outputs, call.id)
    return (b"".join([head, *parts]), len(head)) if parts else (head, None)


def _head(name: str, version: int, outputs: list[dict[str, Any]], request: str | None = None) -> bytes:
    found: dict[str, Any] = {"model_name": name, "model_version": str(version)}
    if request is not None:
        found["id"] = request
    return json.dumps({**found, "outputs": outputs}, allow_nan=False).encode()


@lru_cache(256)
def _binary_head(name: str, version: int, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> bytes:
    """Of an answer that is binary throughout: the same for all requests of a client."""
    sizes = [(output, shape, {"binary_data_size": 4 * math.prod(shape)}) for output, shape in shapes]
    return _head(
        name,
        version,
        [
            {"name": output, "datatype": "FP32", "shape": shape, "parameters": size}
            for output, shape, size in sizes
        ],
    )


def finite(results: Mapping[str, np.ndarray[Any, Any]]) -> bool:
    return all(bool(np.isfinite(result).all()) for result in results.values())


def not_finite() -> Refused:
    """For results that neither JSON nor a person could read."""
    return Refused(
        400, "the model has no finite answer to these values; are they in the training data's units?"
    )


def ranked(row: np.ndarray[Any, Any], labels: tuple[str, ...]) -> list[tuple[int, str, float]]:
    """(index, label, value) of every class, the largest value first; of equals the first index."""
    order = np.argsort(-row, kind="stable").tolist()
    return [(at, labels[at] if at < len(labels) else str(at), float(row[at])) for at in order]


def _classes(result: np.ndarray[Any, Any], most: int, labels: tuple[str, ...]) -> list[list[str]]:
    # Triton writes the label only where there is one.
    return [
        [
            f"{value:f}:{at}" + (f":{label}" if labels else "")
            for at, label, value in ranked(row, labels)[:most]
        ]
        for row in result
    ]
