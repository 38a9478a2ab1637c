"""Writes an inference answer: a model's results -> JSON tensors, or Triton's binary and classification extensions.

Sources: as in `cloud_app.serving.infer_request`.
"""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from cloud_app.serving.infer_request import InferRequest, Refused, Signature

MAX_VALUES = 1 << 20  # that are no binary, of one answer: 20 MB, a second's work
_AT_ONCE = 4096  # values; Python's encoder lets no other thread in before it has written what it was given


def must_be_short(call: InferRequest, gives: Signature) -> None:
    """Raises Refused (400) where the answer to `call` would hold over MAX_VALUES values in JSON, or as text."""
    values = 0
    for asked in call.outputs:
        if asked.binary and not asked.classes:
            continue
        size = math.prod(gives.outputs[asked.name])
        values += len(call.images) * (min(asked.classes, size) if asked.classes else size)
    if values > MAX_VALUES:
        raise Refused(
            400,
            f"the answer would hold {values:,} values in JSON, at most {MAX_VALUES:,} are written; send fewer samples, or "
            "ask for binary_data",
        )


def answer(
    call: InferRequest, results: Mapping[str, np.ndarray[Any, Any]], gave: Signature
) -> tuple[bytes, int | None]:
    """The body, and how many of its bytes are JSON where binary tensors follow (else None).

    `results`: float32 (batch, *size) for every output that `call` asks for, all of them `finite`.
    """
    if call.id is None and all(asked.binary and not asked.classes for asked in call.outputs):
        datas = [np.ascontiguousarray(results[asked.name], "<f4").tobytes() for asked in call.outputs]
        shapes = tuple((asked.name, results[asked.name].shape) for asked in call.outputs)
        head = _binary_head(gave.name, gave.version, shapes)
        return b"".join([head, *datas]), len(head)
    outputs, binary = list[str](), list[bytes]()
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
            outputs.append(json.dumps({**entry, "parameters": {"binary_data_size": len(data)}}))
            binary.append(data)
        else:
            outputs.append(_with_data(entry, texts if asked.classes else result.ravel().tolist()))
    head = _head(gave.name, gave.version, outputs, call.id)
    return (b"".join([head, *binary]), len(head)) if binary else (head, None)


def _head(name: str, version: int, outputs: list[str], request: str | None = None) -> bytes:
    """`outputs`: in JSON."""
    about: dict[str, Any] = {"model_name": name, "model_version": str(version)}
    if request is not None:
        about["id"] = request
    return f'{json.dumps(about)[:-1]}, "outputs": [{", ".join(outputs)}]}}'.encode()


def _with_data(entry: dict[str, Any], values: list[Any]) -> str:
    parts = [json.dumps(values[at : at + _AT_ONCE], allow_nan=False)[1:-1] for at in range(0, len(values), _AT_ONCE)]
    return f'{json.dumps(entry)[:-1]}, "data": [{", ".join(parts)}]}}'


@lru_cache(256)
def _binary_head(name: str, version: int, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> bytes:
    """Of an answer that is binary throughout: the same for all requests of a client."""
    sizes = [(output, shape, {"binary_data_size": 4 * math.prod(shape)}) for output, shape in shapes]
    return _head(
        name,
        version,
        [
            json.dumps({"name": output, "datatype": "FP32", "shape": shape, "parameters": size})
            for output, shape, size in sizes
        ],
    )


def finite(results: Mapping[str, np.ndarray[Any, Any]]) -> bool:
    return all(bool(np.isfinite(result).all()) for result in results.values())


def not_finite() -> Refused:
    """For results that neither JSON nor a person could read."""
    return Refused(400, "the model has no finite answer to these values; are they in the training data's units?")


def ranked(row: np.ndarray[Any, Any], labels: tuple[str, ...], most: int | None = None) -> list[tuple[int, str, float]]:
    """(index, label, value) of every class, or of `most`, the largest value first; of equals the first index."""
    order = np.argsort(-row, kind="stable")[:most].tolist()
    return [(at, labels[at] if at < len(labels) else str(at), float(row[at])) for at in order]


def _classes(result: np.ndarray[Any, Any], most: int, labels: tuple[str, ...]) -> list[list[str]]:
    # Triton writes the label only where there is one.
    return [
        [f"{value:f}:{at}" + (f":{label}" if labels else "") for at, label, value in ranked(row, labels, most)]
        for row in result
    ]
