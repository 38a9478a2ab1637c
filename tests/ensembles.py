"""A trained FL model with a good overlay and a bad one, in the parts that a run keeps."""

import numpy as np
import torch
from torch import nn

from cloud_app.ensemble import model as ensemble
from cloud_app.ensemble.run_archive import Edge, Record
from cloud_app.rounds.state import begin
from emo.config import Data, Model, Training
from emo.data import registry
from emo.data.batches import FixedBatches
from emo.data.dataset import Dataset
from emo.local_sgd import train
from emo.models import split_network

SPEC = Model(name="cnn", width=0.25, input=(1, 8, 8), classes=10)
DATA = Data(heldout=0.2)
RECORD = Record(emo="0.1.0", run="r", rounds=2, model=SPEC, data=DATA)


def _trained(net, dataset, labels=None, epochs=1):
    labels = dataset.labels if labels is None else labels
    shown = Dataset(dataset.images, labels, dataset.classes, dataset.mean, dataset.std)
    batches = FixedBatches(shown, np.arange(len(labels)), 16, 0)
    stream = (batches.batch(j) for epoch in range(epochs) for j in batches.order(1, epoch))
    list(train(net, stream, Training(lr=0.05)))


def trained():
    """`good` is better than the FL model alone; `bad` was taught each digit's successor."""
    torch.set_num_threads(1)
    dataset, _ = registry.load(Data())
    net = split_network.network(SPEC, 0)
    _trained(net, dataset)
    overlays = {}
    for edge, labels in (("good", dataset.labels), ("bad", (dataset.labels + 1) % 10)):
        overlay = split_network.overlay(SPEC, 1)
        pair = nn.Sequential(net.trunk.requires_grad_(requires_grad=False), overlay)
        _trained(pair, dataset, labels, epochs=3)
        overlays[edge] = split_network.weights(overlay)
    return ensemble.parts(split_network.weights(net), overlays)


def ended(config, run, weights, overlays):
    """The cloud's state after the last round of `run`: `overlays`, by edge."""
    state = begin(config, run, weights)
    state.overlays = {edge: Edge(steps=7, attempted=5, sent=3) for edge in overlays}
    state.overlay_weights = overlays
    return state
