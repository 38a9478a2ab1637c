"""Payloads whose checksums agree, from somebody who knows the format; and what a sender must find out itself."""

import dataclasses
import json
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
from samples import examples, same

from emo.errors import FrameError, TooLarge
from emo.journal import Journal
from emo.wire import frame, messages, topics
from emo.wire.frame import parse
from emo.wire.reassembly import Reassembler

BY_NAME = {type(message).__name__: message for message in examples()}


def payload(header, *blobs):
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<I", len(data)) + data + b"".join(blobs)


def number_of(kind):
    return frame.KINDS.index(kind)


WEIGHTS = safetensors.numpy.save({"a": np.zeros(3, np.float32)})
STATUS = {"node": "n", "role": "device", "online": True, "samples": 1}
UPDATE = {
    "run": "r",
    "device": "d",
    "round": 1,
    "samples": 1,
    "loss": 0.5,
    "weights": len(WEIGHTS),
    "form": "fp32",
}


def update(**fields):
    """Number of the kind, and payload."""
    return number_of(messages.Update), payload(list((UPDATE | fields).values()), WEIGHTS)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"[]",
        b"null",
        b"{}",
        json.dumps(STATUS).encode(),
        b'["\xff"]',
        b"9" * 10_000,
        json.dumps([*STATUS.values()][:-1]).encode(),
        json.dumps([*STATUS.values(), 1]).encode(),
        json.dumps([*STATUS.values()]).encode() + b" x",
        json.dumps([[*STATUS.values()]]).encode(),
    ],
)
def test_headers_that_are_no_array_of_the_fields(header):
    with pytest.raises(FrameError):
        frame.unpack(number_of(messages.Status), payload(header))


@pytest.mark.parametrize(
    "field",
    [
        {"samples": -1},
        {"samples": 2**53},
        {"samples": 10**400},
        {"samples": float("nan")},
        {"samples": float("inf")},
        {"samples": 1.5},
        {"samples": [1]},
        {"node": "a/b"},
        {"node": "+"},
        {"node": "a\n"},
        {"node": "a" * 65},
        {"node": "\ud800"},
        {"node": None},
        {"node": {"self": 1}},
        {"role": "king"},
    ],
)
def test_headers_that_are_not_a_status(field):
    good = payload([*STATUS.values()])
    assert isinstance(frame.unpack(number_of(messages.Status), good), messages.Status)
    with pytest.raises(FrameError):
        frame.unpack(number_of(messages.Status), payload([*(STATUS | field).values()]))


@pytest.mark.parametrize(
    "field",
    [
        {"weights": -1},
        {"weights": 1e3},
        {"weights": True},
        {"weights": "9"},
        {"weights": None},
        {"weights": {}},
        {"weights": 2**70},
        {"weights": len(WEIGHTS) - 1},
        {"weights": len(WEIGHTS) + 1},
        {"loss": float("nan")},
        {"loss": float("-inf")},
        {"samples": 0},
        {"round": 2**31},
    ],
)
def test_headers_that_are_not_an_update(field):
    assert isinstance(frame.unpack(*update()), messages.Update)
    with pytest.raises(FrameError):
        frame.unpack(*update(**field))


def crafted(header, data=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "weights",
    [
        b"",
        b"x" * 7,
        struct.pack("<Q", 2**63),
        crafted({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
        crafted({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, bytes(4)),
        crafted({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(5)),
        crafted({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        crafted({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
        crafted({"a": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]}}),
        crafted({"a": [], "__metadata__": 1}),
    ],
)
def test_weights_that_are_not_safetensors(weights):
    header = [*(UPDATE | {"weights": len(weights)}).values()]
    with pytest.raises(FrameError):
        frame.unpack(number_of(messages.Update), payload(header, weights))


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E5M2", "BOOL", "U64", "F64", "C64"])
def test_weights_of_any_dtype_are_arrays_or_refused(dtype):
    size = {"BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1}.get(dtype, 8)
    weights = crafted({"a": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}}, bytes(size))
    header = [*(UPDATE | {"weights": len(weights)}).values()]
    try:
        message = frame.unpack(number_of(messages.Update), payload(header, weights))
    except FrameError:
        return
    assert isinstance(message.weights["a"], np.ndarray)


def batch_of(labels):
    """Number of the kind, and a payload with these bytes as labels."""
    batch = BY_NAME["ActivationBatch"]
    blobs = {"activations": batch.activations.data(), "labels": labels}
    names = [item.name for item in dataclasses.fields(batch)]
    header = [len(blobs[name]) if name in blobs else getattr(batch, name) for name in names]
    return number_of(messages.ActivationBatch), payload(header, *blobs.values())


@pytest.mark.parametrize(
    ("data", "labels"),
    [
        (b"\1", []),
        (b"\1\0\xff", [0, 255]),
        (b"\2\0\1\xff\xff", [256, 65535]),
        (b"\4\xff\xff\xff\x7f", [2**31 - 1]),
        (b"\4\1\0\0\0", [1]),  # wider than it must be
    ],
)
def test_labels_of_any_width(data, labels):
    message = frame.unpack(*batch_of(data))
    assert message.labels.dtype == np.dtype("<i4")
    assert message.labels.tolist() == labels


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\3\0\0\0", b"\x08" + bytes(8), b"\2\0", b"\4" + b"\xff" * 4, b"\1" + bytes(65_537)]
)
def test_labels_that_are_none(data):
    with pytest.raises(FrameError, match="label"):
        frame.unpack(*batch_of(data))


@pytest.mark.parametrize(("highest", "width"), [(0, 1), (255, 1), (256, 2), (65535, 2), (65536, 4)])
def test_labels_take_as_few_bytes_as_they_can(highest, width):
    batch = dataclasses.replace(BY_NAME["ActivationBatch"], labels=np.array([0, highest], "<i4"))
    assert frame.pack(batch).endswith(bytes([width]) + np.array([0, highest], f"<u{width}").tobytes())


@pytest.mark.parametrize(
    "labels",
    [
        np.array([-1], "<i4"),
        np.array([2**31], "<i8"),
        np.array([0.5]),
        np.zeros((1, 1), "<i4"),
        np.zeros(65_537, "<i4"),
    ],
    ids=["negative", "too large", "no integers", "two dims", "too many"],
)
def test_labels_that_cannot_be_sent(labels):
    with pytest.raises(FrameError, match="labels"):
        frame.pack(dataclasses.replace(BY_NAME["ActivationBatch"], labels=labels))


def test_a_header_that_lies_about_its_size_allocates_nothing():
    data = struct.pack("<I", 2**32 - 1) + b"{}"
    tracemalloc.start()
    try:
        with pytest.raises(FrameError, match="does not fit"):
            frame.unpack(0, data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024


# -- what a sender must find out before it sends


def test_a_message_over_its_limit_is_refused_before_its_first_frame():
    assert next(frame.split(BY_NAME["Update"], bytes(8), 1000, 1000))
    with pytest.raises(TooLarge, match="100 is the most"):
        next(frame.split(BY_NAME["Update"], bytes(8), 1000, 100))
    with pytest.raises(TooLarge, match="nothing but a frame's header"):
        next(frame.split(BY_NAME["Update"], bytes(8), frame.OVERHEAD))


@pytest.mark.parametrize(
    "message",
    [
        messages.Refused("r", "d", 1, "\N{GRINNING FACE}" * 500),
        messages.GlobalModel("r", 1, tuple(f"{i:064d}" for i in range(16_000)), BY_NAME["GlobalModel"].training, {}),
    ],
    ids=["a reason of 500 emoji is 6 KB, the limit 4", "16,000 devices make a header over 1 MiB"],
)
def test_what_can_be_sent_can_be_received(message):
    try:
        frames = list(frame.split(message, bytes(8), 256 * 1024, topics.ROUTES[type(message)].limit))
    except TooLarge:
        return
    parts, out = Reassembler(1 << 30, Journal()), None
    for data in frames:
        out = parts.add("s", parse(data), topics.ROUTES[type(message)].limit)
    assert same(frame.unpack(frame.KINDS.index(type(message)), out), message)
