"""Test vectors of the protocol: what goes over the wire as hex, beside the same as plain JSON numbers.

    .venv/bin/python tests/vectors/make.py

writes frames.json, arrays.json and forms.json anew, beside this file: after a change of the protocol, never to make a
test pass. tests/unit/emo/wire/test_protocol.py reads them; docs/protocol.md says how they are read without this code.

Knows one small example of everything that has a place on the wire.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import zstandard

from emo.config import CODECS, DELTA, Form, Training
from emo.wire import codec, frame, messages, topics
from emo.wire.codec import Packed
from emo.wire.compression import Weights, restore, shrink
from emo.wire.messages import Message

FOLDER = Path(__file__).parent
LIMIT = 1 << 20
ROOT = "emo"
_ID = bytes(range(1, 9))
_WEIGHTS = {
    "trunk.0.weight": np.array([[0.5, -1.25, 3.0], [0.0, 2.5, -0.125]], "<f4"),
    "trunk.0.bias": np.array([0.1, -0.2], "<f4"),
    "trunk.1.count": np.array(7, "<i8"),
}
_ACTIVATIONS = np.array([[[0.0, 1.5], [0.25, 0.0]], [[3.0, 0.0], [0.0, 1.0]]], "<f4")


def examples() -> list[tuple[Message, int]]:
    """One message of each kind, one of all that a Status may say, with the largest frame in bytes that each is cut for."""
    one = "20261121T120000-0"
    facts = {"classes": '["ant", "bée"]', "input": "1, 8, 8"}
    activations = Packed(codec.encode(_ACTIVATIONS, "int4"))
    labels = np.array([3, 260], "<i4")
    training = Training(epochs=2, lr=0.05, momentum=0.5, update="delta-int8")
    whole = 256 << 10
    return [
        (messages.Status("device-1", "device", online=True, samples=500), whole),
        (messages.GlobalModel(one, 3, ("device-1", "device-2"), training, _WEIGHTS), 200),
        (messages.Update(one, "device-1", 3, 500, 0.25, _WEIGHTS), whole),
        (messages.Refused(one, "device-1", 2, "round 2 is closed: é"), whole),
        (messages.RunState(one, 3, 60, "training"), whole),
        (messages.OverlayWeights(one, "edge-1", 1200, 640, 80, _WEIGHTS), whole),
        (messages.ActivationBatch(one, "edge-1", "device-1", 17, 6, activations, labels), whole),
        (messages.TapReport(one, "edge-1", "device-1", 3, 96, 12), whole),
        (messages.Interval(one, "edge-1", "device-1", 17, 6, 4.75), whole),
        (messages.CannotTrain(one, "device-1", 3, "ValueError: a batch of one sample"), whole),
        (messages.Unfit("device-1", "input is 3, 8, 8 there and 1, 8, 8 at the cloud"), whole),
        (messages.Status("device-2", "device", True, 17, facts, "a trial step fails"), whole),
        (messages.GlobalHead(one, 3, _WEIGHTS), 200),
        (
            messages.Report(
                "device-1", "device", one, 1795996800.5, "edge-1", "trains round 3", "", {"train.loss": 0.25}, "004z."
            ),
            whole,
        ),
        (
            messages.Event(
                "cloud",
                "cloud",
                7,
                1795996800.5,
                "round",
                {"round": 3, "accuracy": None, "left_out": {"device-2": "late"}},
            ),
            whole,
        ),
        (messages.RunHistory(one, 60, ((1, 0.5, 2.25, 3.5, 2, 2, 0, 1024),), {"fl": 0.5}), whole),
    ]


def frames() -> list[dict[str, Any]]:
    return [
        {
            "kind": type(message).__name__,
            "fields": {item.name: plain(getattr(message, item.name)) for item in dataclasses.fields(message)},
            "message_id": _ID.hex(),
            "chunk": chunk,
            "packets": [
                {"topic": topics.topic(ROOT, message, index), "frame": data.hex()}
                for index, data in enumerate(frame.split(message, _ID, chunk))
            ],
        }
        for message, chunk in examples()
    ]


def arrays() -> list[dict[str, Any]]:
    small = np.array([[-1.0, 0.0, 0.0], [0.5, 0.001, 0.0], [2.0, 7.7, 0.0]], "<f4")  # a channel is a column
    before = np.maximum(np.sin(np.arange(96, dtype="<f4") * 1.7), 0).reshape(2, 3, 4, 4)
    before[:, 2] = 0.25
    after = before * 1.02
    after[0, 0] *= 0.5
    after[before > 0.99] = 0.9  # the base lies outside of the new range
    rows = []
    for name in CODECS:
        delta = name.endswith(DELTA)
        base = codec.decode(codec.encode(before, name), LIMIT) if delta else None
        values = after if delta else small
        data = codec.encode(values, name, base)
        rows.append(
            {
                "codec": name,
                "values": plain(values),
                "base": None if base is None else plain(base),
                "raw": raw(data).hex(),
                "encoded": data.hex(),
                "decoded": plain(codec.decode(data, LIMIT, base)),
            }
        )
    return rows


def raw(encoded: bytes) -> bytes:
    """What lies inside the zstd frame of an encoded array."""
    return zstandard.ZstdDecompressor().decompress(encoded[head(encoded) : -4])


def head(encoded: bytes) -> int:
    """Bytes before the zstd frame."""
    return 8 + 4 * encoded[4] + 8


def forms() -> list[dict[str, Any]]:
    base = {name: np.asarray(array * 0.75, array.dtype) for name, array in _WEIGHTS.items()}
    rows = []
    for form in get_args(Form):
        sent = shrink(_WEIGHTS, form, base)
        back = restore(sent, form, base)
        rows.append({"form": form, "base": plain(base), "sent": plain(sent), "restored": plain(back)})
    return rows


def plain(value: Any) -> Any:
    """`value` as JSON: an array is its dtype, shape and values in row-major order; encoded bytes are hex."""
    if isinstance(value, Packed):
        return value.data().hex()
    if isinstance(value, np.ndarray):
        return {
            "dtype": value.dtype.str,
            "shape": list(value.shape),
            "values": value.reshape(-1).tolist(),
        }
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, Training):
        return value.model_dump()
    return list(value) if isinstance(value, tuple) else value


def array(value: dict[str, Any]) -> np.ndarray:
    """The array of which `plain` is `value`."""
    return np.array(value["values"], value["dtype"]).reshape(value["shape"])


def weights(value: dict[str, Any]) -> Weights:
    return {name: array(each) for name, each in value.items()}


def message(kind: type[Message], fields: dict[str, Any]) -> Message:
    """The message of which `fields` are the `plain` ones."""
    special = {"weights": weights, "activations": _packed, "labels": array, "training": _training}
    return kind(**{name: special.get(name, _same)(value) for name, value in fields.items()})


def _packed(value: str) -> Packed:
    return Packed(bytes.fromhex(value))


def _training(value: dict[str, Any]) -> Training:
    return Training.model_validate(value)


def _same(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def read(name: str) -> list[dict[str, Any]]:
    """The stored vectors: frames, arrays or forms."""
    found: list[dict[str, Any]] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def main() -> None:
    for made in (frames, arrays, forms):
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in made()]
        text = "[\n" + ",\n".join(lines) + "\n]\n"
        (FOLDER / f"{made.__name__}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
