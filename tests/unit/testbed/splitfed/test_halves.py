"""A device and its server train as if the network were whole, and every byte between them is counted."""

import dataclasses

import numpy as np
import pytest
from splits import MODEL, batches, plan, same, whole
from torch import nn

from emo.config import Training
from emo.errors import ModelError, WireError
from emo.models import split_network
from emo.models.split_network import SplitNetwork
from emo.wire import frame, topics
from emo.wire.codec import Packed
from emo.wire.messages import ActivationBatch, GlobalModel
from testbed import node_configs
from testbed.splitfed.halves import Halves, half
from testbed.splitfed.wire import Wire

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_halves_train_to_the_bit_like_the_whole(norm, momentum):
    training = Training(lr=0.05, momentum=momentum, epochs=2)
    settings = plan(model=MODEL.model_copy(update={"norm": norm}), training=training)
    net = node_configs.network(settings)
    start = split_network.weights(net)
    halves = Halves(net)
    for device in (0, 1):  # nothing of the first is left for the second
        message = GlobalModel("run", 1, (), training, start)
        done = halves.round(message, batches(settings, device), f"device-{device}", "cloud")
        assert same(done.update.weights, whole(settings, start, 1, device))
        assert (done.batches, done.samples, done.update.samples) == (8, 104, 52)


def test_what_trains_is_what_has_crossed(monkeypatch):
    settings, carry = plan(), Wire.carry
    start = split_network.weights(node_configs.network(settings))

    def run(change):
        def changed(wire, message):
            arrived = carry(wire, message)
            return change(arrived) if isinstance(arrived, ActivationBatch) else arrived

        monkeypatch.setattr(Wire, "carry", changed)
        message = GlobalModel("run", 1, (), settings.training, start)
        return Halves(node_configs.network(settings)).round(message, batches(settings, 0), "d0", "cloud").update.weights

    def nothing(batch):
        zero = Packed(0 * batch.activations.array(1 << 20))
        return dataclasses.replace(batch, activations=zero)

    # A gradient has no labels. Without one the trunk stays as it was; without activations the first layers of
    # the server's half learn nothing but biases.
    no_gradient = run(lambda batch: batch if len(batch.labels) else nothing(batch))
    assert same(half(no_gradient, "trunk"), half(start, "trunk"))
    assert not same(half(no_gradient, "head"), half(start, "head"))
    no_activations = run(lambda batch: nothing(batch) if len(batch.labels) else batch)
    assert np.array_equal(no_activations["head.0.weight"], start["head.0.weight"])


def test_bytes_are_those_of_the_frames():
    settings = plan(training=Training(lr=1e-9))
    net = node_configs.network(settings)
    start = split_network.weights(net)
    done = Halves(net).round(
        GlobalModel("run", 1, ("device-0",), settings.training, start),
        batches(settings, 0),
        "device-0",
        "cloud",
    )

    def size(message):
        name = topics.topic("emo", message)
        return sum(len(name) + len(packet) for packet in frame.split(message, bytes(8), 1 << 20))

    split_network.load(net, start)
    trunk = GlobalModel("run", 1, ("device-0",), settings.training, half(start, "trunk"))
    assert done.down["GlobalModel"] == size(trunk)
    assert done.up["Update"] == size(dataclasses.replace(done.update, weights=half(done.update.weights, "trunk")))
    up = down = 0
    mine = batches(settings, 0)
    for j in range(len(mine)):
        batch = mine.batch(j)
        activations = net.trunk(batch.inputs).detach().requires_grad_()
        nn.functional.cross_entropy(net.head(activations), batch.labels).backward()
        labels = batch.labels.numpy().astype("<i4")
        for values, answers in ((activations.detach(), labels), (activations.grad, labels[:0])):
            size_ = size(ActivationBatch("run", "cloud", "device-0", j, 1, Packed(values.numpy()), answers))
            up, down = (up + size_, down) if len(answers) else (up, down + size_)
    # zstd makes of values that differ in their last bits a few bytes more or less.
    assert done.up["ActivationBatch"] == pytest.approx(up, rel=1e-3)
    assert done.down["ActivationBatch"] == pytest.approx(down, rel=1e-2)
    assert done.up.keys() == {"Update", "ActivationBatch"}
    assert done.down.keys() == {"GlobalModel", "ActivationBatch"}


def test_a_trunk_without_weights_is_refused():
    with pytest.raises(ModelError, match="no weights"):
        Halves(SplitNetwork(nn.Flatten(), nn.Linear(64, 10)))


def test_a_wire_delivers_messages_of_many_packets_and_refuses_what_no_channel_would_take():
    wire = Wire()
    weights = {"w": np.arange(200_000, dtype=np.float32)}
    assert same(wire.carry(GlobalModel("run", 1, (), Training(), weights)).weights, weights)
    assert wire.bytes["GlobalModel"] > weights["w"].nbytes + 4 * 40
    with pytest.raises(WireError):
        wire.carry(ActivationBatch("run", "a", "a", 1, 1, Packed(b"junk" * 10), np.empty(0, "<f4")))
