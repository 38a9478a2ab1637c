"""How large a message a node takes follows from its own model: whatever an honest one sends fits, and a flood is not read."""

import json
import struct
import tracemalloc
from typing import get_args

import numpy as np
import pytest
import safetensors.numpy
from fleet import MODEL
from samples import same

from emo.config import CODECS, Form, Model, Training, Whole
from emo.errors import FrameError
from emo.journal import Journal
from emo.models import split_network
from emo.wire import frame, tensors, topics
from emo.wire.codec import Packed
from emo.wire.compression import shrink
from emo.wire.limits import Limit, of_batches, of_weights
from emo.wire.messages import ActivationBatch, GlobalModel, OverlayWeights, Update
from emo.wire.receiver import Receiver

NETS = {
    "cnn": MODEL,
    "batch norm": Model(name="vgg6", width=0.1, norm="batch", input=(3, 32, 32)),
    "depthwise": Model(name="mobilenet6", width=0.25, input=(3, 32, 32)),
}


def taken(limits, *sent):
    """What a receiver with these limits makes of it, how many frames it refused, and the most that it held."""
    journal, most, out = Journal(), 0, []
    receiver = Receiver[None]("emo", journal, limits=limits)
    for number, message in enumerate(sent):
        for index, data in enumerate(frame.split(message, number.to_bytes(8, "little"), 1 << 18)):
            got, _ = receiver.take(topics.topic("emo", message, index), data, None)
            most = max(most, receiver._parts.held)
            out += [got] if got is not None else []
    return out, journal.counts["frames.refused"], most


@pytest.mark.parametrize("spec", NETS.values(), ids=NETS)
def test_every_form_of_honest_weights_fits(spec):
    net = split_network.weights(split_network.network(spec, 0))
    overlay = split_network.weights(split_network.overlay(spec, 0))
    rng = np.random.default_rng(0)
    # What no codec makes smaller, and, a third of it, what all code as floats.
    wild = {
        name: np.array(rng.standard_normal(array.shape) * (1e10 if n % 3 == 2 else 1), array.dtype)
        for n, (name, array) in enumerate(net.items())
    }
    devices = tuple(f"{n:064d}" for n in range(10_000))
    sent = [
        *(GlobalModel("r", 1, devices, Training(), shrink(wild, form, net), form) for form in get_args(Whole)),
        *(Update("r", "d1", n, 10, 0.5, shrink(wild, form, net), form) for n, form in enumerate(get_args(Form))),
        OverlayWeights("r", "e1", 1, 1, 1, overlay),
    ]
    limits = {kind: of_weights(kind, net) for kind in (GlobalModel, Update)}
    got, refused, _ = taken(limits | {OverlayWeights: of_weights(OverlayWeights, overlay)}, *sent)
    assert not refused
    assert all(same(one, two) for one, two in zip(got, sent, strict=True))


@pytest.mark.parametrize("shape", [(4, 8, 8), (5,), (3, 1)])
@pytest.mark.parametrize("samples", [1, 16])
def test_every_codec_of_honest_batches_fits(shape, samples):
    values = np.random.default_rng(0).standard_normal((samples, *shape)).astype(np.float32)
    labels = np.full(samples, 2**31 - 1, "<i4")
    sent = [ActivationBatch("r", "e1", "d1", 0, n, Packed(values, codec), labels) for n, codec in enumerate(CODECS)]
    got, refused, _ = taken({ActivationBatch: of_batches(ActivationBatch, samples, shape)}, *sent)
    assert (len(got), refused) == (len(CODECS), 0)


def test_a_batch_that_becomes_larger_than_any_honest_one_is_refused_unopened():
    bomb = Packed(np.zeros((512, 4, 8, 8), np.float32), "int2")
    assert len(bomb.data()) < 4096
    batch = ActivationBatch("r", "e1", "d1", 0, 1, bomb, np.zeros(512, "<i4"))
    assert taken({ActivationBatch: of_batches(ActivationBatch, 16, (4, 8, 8))}, batch)[:2] == ([], 1)


def test_an_update_of_another_size_than_the_models_is_not_held():
    like = split_network.weights(split_network.network(MODEL, 0))
    flood = Update("r", "d1", 1, 10, 0.5, {"w": np.zeros(1 << 20, np.float32)})
    assert taken({Update: of_weights(Update, like)}, flood) == ([], 17, 0)


def weights_of(header, body=b""):
    """A safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def empty(count):
    entries = (b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % n for n in range(count))
    return weights_of(b"{" + b",".join(entries) + b"}")


def test_tensors_are_counted_before_they_are_made():
    limit = of_weights(Update, {"a": np.zeros(1 << 18, np.float32), "b": np.zeros(3, np.float32)})
    assert len(tensors.load(memoryview(empty(2)), limit)) == 2
    with pytest.raises(FrameError, match="3 tensors; 2 is the most"):
        tensors.load(memoryview(empty(3)), limit)
    flood = memoryview(empty(30_000))
    assert len(flood) < limit.payload
    tracemalloc.start()
    try:
        with pytest.raises(FrameError, match=f"{limit.names} is the most for the 2 tensors"):
            tensors.load(flood, limit)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ({"a": F32, "b": F32}, bytes(4)),
        ({"a": F32, "b": F32 | {"data_offsets": [8, 12]}}, bytes(12)),
        ({"a": F32 | {"data_offsets": [4, 8]}}, bytes(8)),
        ({"a": F32 | {"data_offsets": [4, 0]}}, bytes(4)),
        ({"a": F32 | {"data_offsets": [0, 4, 4]}}, bytes(4)),
        ({"a": F32 | {"data_offsets": [False, 4]}}, bytes(4)),
        ({"a": F32 | {"shape": [0, 2**39, 2**39], "data_offsets": [0, 0]}}, b""),
        ({"a": F32 | {"shape": [1] * 100}}, bytes(4)),
        ({"a": F32 | {"shape": [1.0]}}, bytes(4)),
        ({"a": F32 | {"shape": {}}}, bytes(4)),
        ({"a": F32 | {"dtype": []}}, bytes(4)),
        ({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
        ([], b""),
        (b"[" * 5000, b""),
        (b'{"a":' + b"9" * 5000 + b"}", b""),
    ],
)
def test_tensors_that_are_none(header, body):
    with pytest.raises(FrameError, match=r"safetensors|shape"):
        tensors.load(memoryview(weights_of(header, body)), Limit(1 << 20))


def test_what_the_library_writes_is_read_and_what_it_reads_of_others_too():
    rng = np.random.default_rng(0)
    arrays = {
        str(n): rng.integers(0, 2, (n, 2)).astype(dtype)
        for n, dtype in enumerate(["f8", "f4", "f2", "i8", "i4", "u1", "?"])
    } | {"0-dim": np.array(3, np.int64)}
    back = tensors.load(memoryview(safetensors.numpy.save(arrays, {"made": "by hand"})), Limit(1 << 20))
    assert all(back[n].dtype == a.dtype and np.array_equal(back[n], a) for n, a in arrays.items())
    assert back.keys() == arrays.keys()
    text = json.dumps({"ü": {"shape": [2], "dtype": "BOOL", "data_offsets": [0, 2]}}, indent=8).encode()
    (found,) = tensors.load(memoryview(weights_of(text, b"\2\0")), Limit(1 << 20)).values()
    assert found.view(np.uint8).tolist() == [1, 0]  # a bool of 2 would be neither
