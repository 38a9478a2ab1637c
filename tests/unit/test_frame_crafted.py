"""Payloads whose checksums agree, from somebody who knows the format; and what a sender must find out itself."""

import json
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
from samples import examples, same

from emo import frame, messages, topics
from emo.errors import FrameError, TooLarge
from emo.frame import Reassembler, parse

BY_NAME = {type(message).__name__: message for message in examples()}


def payload(header, *blobs):
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<I", len(data)) + data + b"".join(blobs)


def number_of(kind):
    return frame.KINDS.index(kind)


STATUS = {"blobs": {}, "node": "n", "role": "device", "online": True, "samples": 1}
UPDATE = {"run": "r", "device": "d", "round": 1, "samples": 1, "loss": 0.5}
WEIGHTS = safetensors.numpy.save({"a": np.zeros(3, np.float32)})


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"[]",
        b"null",
        b"{}",
        b'{"blobs":[]}',
        b'"\xff"',
        b"9" * 10_000,
        json.dumps(STATUS | {"samples": -1}).encode(),
        json.dumps(STATUS | {"samples": 2**53}).encode(),
        json.dumps(STATUS | {"samples": 10**400}).encode(),
        json.dumps(STATUS | {"samples": float("nan")}).encode(),
        json.dumps(STATUS | {"samples": float("inf")}).encode(),
        json.dumps(STATUS | {"samples": 1.5}).encode(),
        json.dumps(STATUS | {"samples": [1]}).encode(),
        json.dumps(STATUS | {"node": "a/b"}).encode(),
        json.dumps(STATUS | {"node": "+"}).encode(),
        json.dumps(STATUS | {"node": "a\n"}).encode(),
        json.dumps(STATUS | {"node": "a" * 65}).encode(),
        json.dumps(STATUS | {"node": "\ud800"}).encode(),
        json.dumps(STATUS | {"node": None}).encode(),
        json.dumps(STATUS | {"role": "king"}).encode(),
        json.dumps(STATUS | {"more": 1}).encode(),
        json.dumps(STATUS | {"self": 1}).encode(),
        json.dumps(STATUS | {"__class__": "x"}).encode(),
        json.dumps(STATUS | {"blobs": {"weights": 0}}).encode(),
        json.dumps({"blobs": {}, "node": "n"}).encode(),
        json.dumps(STATUS).encode() + b" x",
    ],
)
def test_headers_that_are_not_a_status(header):
    with pytest.raises(FrameError):
        frame.unpack(number_of(messages.Status), payload(header))


@pytest.mark.parametrize(
    ("blobs", "fields"),
    [
        ({"weights": -1}, {}),
        ({"weights": 1e3}, {}),
        ({"weights": True}, {}),
        ({"weights": "9"}, {}),
        ({"weights": 2**70}, {}),
        ({"weights": len(WEIGHTS) - 1}, {}),
        ({"weights": len(WEIGHTS) + 1}, {}),
        ({"weights": len(WEIGHTS), "labels": 0}, {}),
        ({}, {}),
        ({"weights": len(WEIGHTS)}, {"weights": {}}),
        ({"weights": len(WEIGHTS)}, {"loss": float("nan")}),
        ({"weights": len(WEIGHTS)}, {"loss": float("-inf")}),
        ({"weights": len(WEIGHTS)}, {"samples": 0}),
        ({"weights": len(WEIGHTS)}, {"round": 2**31}),
    ],
)
def test_headers_that_are_not_an_update(blobs, fields):
    good = payload(UPDATE | {"blobs": {"weights": len(WEIGHTS)}}, WEIGHTS)
    assert isinstance(frame.unpack(number_of(messages.Update), good), messages.Update)
    with pytest.raises(FrameError):
        frame.unpack(number_of(messages.Update), payload(UPDATE | {"blobs": blobs} | fields, WEIGHTS))


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
    with pytest.raises(FrameError):
        frame.unpack(
            number_of(messages.Update), payload(UPDATE | {"blobs": {"weights": len(weights)}}, weights)
        )


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E5M2", "BOOL", "U64", "F64", "C64"])
def test_weights_of_any_dtype_are_arrays_or_refused(dtype):
    size = {"BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1}.get(dtype, 8)
    weights = crafted({"a": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}}, bytes(size))
    try:
        update = frame.unpack(
            number_of(messages.Update), payload(UPDATE | {"blobs": {"weights": len(weights)}}, weights)
        )
    except FrameError:
        return
    assert isinstance(update.weights["a"], np.ndarray)


def test_labels_of_odd_length():
    header = {"run": "r", "edge": "e", "device": "d", "batch": 0, "version": 0}
    header["blobs"] = {"activations": 0, "labels": 3}
    with pytest.raises(FrameError, match="multiple of 4"):
        frame.unpack(number_of(messages.ActivationBatch), payload(header, b"abc"))


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
        messages.GlobalModel(
            "r", 1, tuple(f"{i:064d}" for i in range(16_000)), BY_NAME["GlobalModel"].training, {}
        ),
    ],
    ids=["a reason of 500 emoji is 6 KB, the limit 4", "16,000 devices make a header over 1 MiB"],
)
def test_what_can_be_sent_can_be_received(message):
    try:
        frames = list(frame.split(message, bytes(8), 256 * 1024, topics.ROUTES[type(message)].limit))
    except TooLarge:
        return
    parts, out = Reassembler(1 << 30), None
    for data in frames:
        out = parts.add("s", parse(data), topics.ROUTES[type(message)].limit)
    assert same(frame.unpack(frame.KINDS.index(type(message)), out), message)
