"""Devices trained together end where they end one after another, within rounding.

Compared in float64: in float32 a rounding may turn a ReLU or a maximum the other way, and then the two part.
"""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from emo.config import Data, Model, Training
from emo.data import registry
from emo.data.batches import Batch, FixedBatches
from emo.errors import ModelError
from emo.local_sgd import train
from emo.models import split_network
from emo.models.split_network import SplitNetwork
from testbed.fleet.vmap_sgd import Stack

pytestmark = pytest.mark.usefixtures("one_thread")

CNN = Model(name="cnn", width=0.5)
VGG = Model(name="vgg6", width=0.125, input=(3, 32, 32))


def double(batch):
    return batch._replace(inputs=batch.inputs.double())


def network(spec, seed=0):
    return split_network.network(spec, seed).double()


def digits(sizes):
    """A share of so many samples for each device: batches of 16, the last one of what is left."""
    training, _ = registry.load(Data())
    ends = np.cumsum([0, *sizes])
    shares = [FixedBatches(training, np.arange(*pair), 16, 0) for pair in itertools.pairwise(ends)]
    return [[double(share.batch(j)) for j in share.order(1, 0)] for share in shares]


def noise(sizes, spec):
    drawn = torch.Generator().manual_seed(0)
    return [
        [
            double(Batch(j, torch.randn(n, *spec.input, generator=drawn), torch.randint(10, (n,), generator=drawn)))
            for j, n in enumerate(batches)
        ]
        for batches in sizes
    ]


def alone(spec, start, streams, settings, epochs):
    """(losses, activations, weights) by device: emo.local_sgd's loop, one device after another."""
    found = []
    for stream in streams:
        net = network(spec, 0)
        split_network.load(net, start)
        seen = []
        net.trunk.register_forward_hook(lambda _module, _inputs, output, seen=seen: seen.append(output.detach()))
        losses = [loss for _ in range(epochs) for loss in train(net, stream, settings)]
        found.append((losses, seen, split_network.weights(net)))
    return found


def together(spec, start, streams, settings, epochs):
    stack = Stack(network(spec, 0))
    stack.load(start, len(streams))
    found = [([], []) for _ in streams]
    for _ in range(epochs):
        for step in stack.epoch(streams, settings):
            for row, place in enumerate(step.places):
                found[place][0].append(step.losses[row].item())
                found[place][1].append(step.activations[row])
    return [(*each, stack.weights(place)) for place, each in enumerate(found)]


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_digits_with_shares_of_any_size(norm, momentum):
    spec = CNN.model_copy(update={"norm": norm})
    # 83 and 84 end in a batch of 3 and 4; 96 has none that is short, 20 has fewer batches than the rest.
    check(spec, digits([83, 84, 96, 20]), Training(lr=0.05, momentum=momentum), epochs=2)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_vgg(norm):
    spec = VGG.model_copy(update={"norm": norm})
    check(spec, noise([[4, 4], [4, 4], [4, 3]], spec), Training(lr=0.01), epochs=1)


def check(spec, streams, settings, epochs):
    start = split_network.weights(network(spec, 1))
    expected, found = (run(spec, start, streams, settings, epochs) for run in (alone, together))
    for (losses, activations, weights), (own, seen, ours) in zip(expected, found, strict=True):
        np.testing.assert_allclose(own, losses, rtol=1e-9)
        assert len(seen) == len(activations)
        for one, two in zip(activations, seen, strict=True):
            np.testing.assert_allclose(two, one, rtol=1e-6, atol=1e-9)
        assert list(ours) == list(weights)
        for name, array in weights.items():
            assert ours[name].dtype == array.dtype
            moved = np.abs(array - start[name]).max()
            np.testing.assert_allclose(ours[name], array, rtol=0, atol=1e-6 * max(moved, 1e-6), err_msg=name)


def test_every_device_has_weights_of_its_own():
    start = split_network.weights(network(CNN, 1))
    found = together(CNN, start, digits([64, 64]), Training(lr=0.05), 1)
    assert any(not np.array_equal(found[0][2][name], found[1][2][name]) for name in start)


def test_a_stack_may_be_used_again():
    start, streams = split_network.weights(network(CNN, 1)), digits([64, 40])
    stack = Stack(network(CNN, 0))
    runs = []
    for _ in range(2):
        stack.load(start, len(streams))
        list(stack.epoch(streams, Training(lr=0.05)))
        runs.append(stack.weights(1))
    assert all(np.array_equal(runs[0][name], runs[1][name]) for name in start)


def test_a_batch_is_taken_when_its_step_is_due():
    taken = []

    def watched(batches):
        for batch in batches:
            taken.append(batch.id)
            yield batch

    stack = Stack(network(CNN, 0))
    stack.load(split_network.weights(network(CNN, 1)), 2)
    steps = stack.epoch([watched(stream) for stream in digits([64, 64])], Training())
    assert taken == []
    next(steps)
    assert len(taken) == 2


def test_frozen_and_unused_layers_stay_as_they_are():
    net = network(CNN)
    net.head.unused = nn.Linear(2, 2).double()
    net.head.forward = lambda given, layers=list(net.head)[:2]: layers[1](layers[0](given))
    net.trunk[0].weight.requires_grad_(False)
    start, streams = split_network.weights(net), digits([64, 40])
    stack = Stack(net)
    stack.load(start, 2)
    list(stack.epoch(streams, Training(lr=0.05, momentum=0.5)))
    split_network.load(net, start)
    list(train(net, streams[1], Training(lr=0.05, momentum=0.5)))
    for name, array in split_network.weights(net).items():
        np.testing.assert_allclose(stack.weights(1)[name], array, rtol=0, atol=1e-9, err_msg=name)
        fixed = name == "trunk.0.weight" or "unused" in name
        assert np.array_equal(array, start[name]) == fixed


def test_layers_that_share_weights_are_refused():
    layer = nn.Linear(4, 4)
    with pytest.raises(ModelError, match=r"trunk\.2\.weight"):
        Stack(SplitNetwork(nn.Sequential(layer, nn.ReLU(), layer), nn.Linear(4, 2)))


def test_weights_of_another_network_are_refused():
    with pytest.raises(ModelError, match="do not fit"):
        Stack(network(CNN, 0)).load(split_network.weights(network(VGG, 0)), 2)
