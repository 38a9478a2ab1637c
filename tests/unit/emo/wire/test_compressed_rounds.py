"""Federated learning in every form of the weights: what the default leaves alone, and what all of them promise."""

import json
import re
import struct

import numpy as np
import pytest
import safetensors.numpy
from fleet import MODEL, dataset

from cloud_app.aggregation import exact_mean
from cloud_app.rounds.node import CloudNode
from cloud_app.rounds.state import begin
from device_app.node import DeviceNode
from emo.config import CloudConfig, DeviceConfig, Partition, Training
from emo.data.batches import FixedBatches
from emo.data.partition import share
from emo.errors import CodecError, ModelError
from emo.journal import Journal
from emo.local_sgd import train
from emo.models import split_network
from emo.wire import frame
from emo.wire.compression import restore, shrink
from emo.wire.messages import GlobalModel, Status, Update

pytestmark = pytest.mark.usefixtures("one_thread")
FORMS = [
    ("fp32", "fp32"),
    ("fp16", "fp32"),
    ("delta-fp16", "fp32"),
    ("delta-int8", "fp32"),
    ("delta-fp16", "fp16"),
    ("delta-int8", "fp16"),
]
NAMES = ["d0", "d1", "d2"]
ROUNDS = 3


def start():
    return split_network.weights(split_network.network(MODEL, 1))


def cloud(model="fp32", **training):
    config = CloudConfig.model_validate(
        {
            "model": MODEL,
            "rounds": {"rounds": ROUNDS, "min_devices": len(NAMES), "model": model},
            "training": {"lr": 0.05, "epochs": 2} | training,
        }
    )
    return CloudNode(config, begin(config, "run", start()), Journal())


def device(name):
    partition = {"devices": len(NAMES), "index": NAMES.index(name), "scheme": "iid"}
    config = DeviceConfig.model_validate({"id": name, "model": MODEL, "partition": partition})
    return DeviceNode(config, dataset(), Journal())


def wire(message):
    return frame.unpack(frame.KINDS.index(type(message)), frame.pack(message))


def run(node, order=NAMES, change=lambda update: update):
    """Every GlobalModel and Update of a run, by the wire; updates arrive in `order`."""
    devices = {name: device(name) for name in NAMES}
    sent = []
    for name in NAMES:
        sent += node.handle(Status(name, "device", online=True, samples=1), 0)
    models_, updates = [m for m in sent if isinstance(m, GlobalModel)], []
    while models_[-1].devices:
        answers = {n: [m for m in devices[n].handle(wire(models_[-1]), 0) if m] for n in NAMES}
        for name in order:
            (update,) = answers[name]
            updates.append(change(update))
            models_ += [m for m in node.handle(wire(updates[-1]), 1) if isinstance(m, GlobalModel)]
    return models_, updates


def bits(weights):
    return {name: array.tobytes() for name, array in weights.items()}


def test_by_default_global_models_are_those_of_plain_fedavg():
    expected = [start()]
    for number in range(1, ROUNDS + 1):
        total = exact_mean.init(expected[-1])
        for index in range(len(NAMES)):
            rows = share(dataset().labels, Partition(devices=len(NAMES), index=index, scheme="iid"))
            batches = FixedBatches(dataset(), rows, 16, 0)
            net = split_network.network(MODEL, 0)
            split_network.load(net, expected[-1])
            for epoch in range(2):
                stream = (batches.batch(j) for j in batches.order(number, epoch))
                list(train(net, stream, Training(lr=0.05)))
            total.add(split_network.weights(net), batches.samples)
        expected.append(total.result())
    sent, _ = run(cloud())
    assert [bits(model.weights) for model in sent] == [bits(weights) for weights in expected]


def test_by_default_weights_are_on_the_wire_as_they_are():
    node = cloud()
    sent, updates = run(node)
    training = {"epochs": 2, "lr": 0.05, "momentum": 0.0, "update": "fp32"}
    for message, fields, rest in (
        (sent[0], ["run", 1, NAMES, training], [False]),
        (updates[0], ["run", "d0", 1, updates[0].samples, updates[0].loss], []),
    ):
        blob = safetensors.numpy.save(dict(message.weights))
        data = frame.pack(message)
        end = 4 + struct.unpack_from("<I", data)[0]
        assert json.loads(data[4:end]) == [*fields, len(blob), "fp32", *rest]
        assert data[end:] == blob
        assert {array.dtype for array in message.weights.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(("update", "model"), FORMS)
def test_the_same_bits_in_every_form_whatever_order_updates_arrive_in(update, model):
    first, updates = run(cloud(model, update=update))
    again, _ = run(cloud(model, update=update), order=["d2", "d0", "d1"])
    assert [bits(each.weights) for each in first] == [bits(each.weights) for each in again]
    assert {each.form for each in first} == {model}
    assert {each.form for each in updates} == {update}
    exact, _ = run(cloud())
    end = restore(first[-1].weights, model, start())
    off = sum(float(((end[name] - array) ** 2).sum()) for name, array in exact[-1].weights.items())
    moved = sum(float(((array - start()[name]) ** 2).sum()) for name, array in exact[-1].weights.items())
    assert off < 0.03**2 * moved
    assert (off == 0) == (update == model == "fp32")


def test_a_delta_is_added_to_the_model_that_was_sent_and_not_to_what_was_rounded_away():
    node = cloud("fp16", update="delta-fp16")
    sent, updates = run(node)
    base = restore(sent[0].weights, "fp16", start())
    assert bits(base) != bits(start())
    total = exact_mean.init(base)
    for update in updates[: len(NAMES)]:
        total.add(restore(update.weights, update.form, base), update.samples)
    average = total.result()
    for name, array in restore(sent[1].weights, "fp16", start()).items():
        rounded = average[name] if array.ndim < 2 else average[name].astype(np.float16)
        np.testing.assert_array_equal(array, rounded)
    # What the cloud measures and exports is what devices hold.
    assert bits(node.state.weights) == bits(restore(sent[-1].weights, "fp16", start()))


def test_a_fleet_may_mix_forms():
    node = cloud()
    forms = iter(["fp32", "fp16", "delta-int8"] * ROUNDS)

    def changed(update):
        # As a device would whose own setting differs: the same weights in another form.
        form, base = next(forms), node.state.weights
        return Update(**(vars(update) | {"weights": shrink(update.weights, form, base), "form": form}))

    mixed, updates = run(node, change=changed)
    assert {update.form for update in updates} == {"fp32", "fp16", "delta-int8"}
    assert node.state.round == ROUNDS
    assert not node._journal.counts["updates.refused"]
    exact, _ = run(cloud())
    for name, array in exact[-1].weights.items():
        np.testing.assert_allclose(mixed[-1].weights[name], array, atol=2e-3)


def test_the_retained_model_stands_alone_for_a_device_that_joins_late():
    sent, _ = run(cloud("fp16", update="delta-int8"))
    late = device("d1")
    (update,) = [m for m in late.handle(wire(sent[2]), 0) if m]
    assert update.round == 3
    assert update.form == "delta-int8"


def test_the_broker_that_forgot_gets_the_same_bytes_again():
    node = cloud("fp16")
    for name in NAMES:
        list(node.handle(Status(name, "device", online=True, samples=1), 0))
    first, again = ([frame.pack(m) for m in node.restore()] for _ in range(2))
    assert first == again


@pytest.mark.parametrize(("form", "error"), [("fp32", ModelError), ("fp16", CodecError)])
def test_a_device_refuses_a_model_that_is_not_its_own(form, error):
    node = device("d0")
    wrong = GlobalModel("run", 1, ("d0",), Training(), {"w": np.zeros((2, 2), np.float32)}, form)
    (said,) = node.handle(wrong, 0)
    assert error.__name__ in said.reason
    assert re.search(r"do not (fit|match)", said.reason)
    sent, _ = run(cloud())
    assert any(isinstance(m, Update) for m in node.handle(sent[0], 0))  # and goes on
