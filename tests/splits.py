"""A small plan of split federated learning, and what its devices would do with the network in one piece."""

import numpy as np

from emo.config import Data, Model, Training
from emo.data import registry
from emo.local_sgd import train
from emo.models import split_network
from testbed import node_configs
from testbed.plan import Plan

MODEL = Model(name="cnn", width=0.5)


def plan(method="sfl-cloud", **changes):
    values = {
        "method": method,
        "model": MODEL,
        "devices": 6,
        "per_round": 4,
        "samples": 52,
        "edges": (0.4, 0.6),
        "training": Training(lr=0.05, momentum=0.5, epochs=2),
    }
    return Plan(**(values | changes))


def batches(settings, device):
    training, _ = registry.load(Data())
    return node_configs.batches(settings, training, node_configs.shares(settings, training.labels)[device])


def whole(settings, start, number, device):
    """The device's weights after a round of the network in one piece: FL-Large."""
    net = node_configs.network(settings)
    split_network.load(net, start)
    mine = batches(settings, device)
    for epoch in range(settings.training.epochs):
        list(train(net, (mine.batch(j) for j in mine.order(number, epoch)), settings.training))
    return split_network.weights(net)


def same(one, two):
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)
