"""A small plan of split federated learning, and what its devices would do with the network in one piece."""

import numpy as np

from emo import data, models
from emo.config import Data, Model, Training
from emo.training import train
from testbed import nets, nodes
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
    training, _ = data.load(Data())
    return nodes.batches(settings, training, nodes.shares(settings, training.labels)[device])


def whole(settings, start, number, device):
    """The device's weights after a round of the network in one piece: FL-Large."""
    net = nets.build(settings)
    models.load(net, start)
    mine = batches(settings, device)
    for epoch in range(settings.training.epochs):
        list(train(net, (mine.batch(j) for j in mine.order(number, epoch)), settings.training))
    return models.weights(net)


def same(one, two):
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)
