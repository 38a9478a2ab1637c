"""Our SGD is torch's, to the bit, and loads less."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from emo.local_sgd import Sgd


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_it_takes_the_steps_of_torch(momentum, weight_decay):
    def trained(kind):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 3), nn.Linear(3, 3))
        unused = nn.Parameter(torch.ones(2))
        if weight_decay:  # which torch has not for sparse gradients
            net[0].sparse = False
        optimizer = kind([*net.parameters(), unused], lr=0.1, momentum=momentum, weight_decay=weight_decay)
        for step in range(5):
            optimizer.zero_grad()
            outputs = net[1](net[0](torch.arange(5))) if step == 2 else net(torch.arange(5))
            outputs.square().sum().backward()
            optimizer.step()
        return [*net.parameters(), unused]

    for ours, torchs in zip(trained(Sgd), trained(torch.optim.SGD), strict=True):
        assert torch.equal(ours, torchs)


def test_a_process_that_trains_does_not_load_the_compiler():
    script = """
import sys
from emo.data import registry
from emo.models import split_network
from emo.config import Data, Model, Overlay, Training
from emo.data.batches import FixedBatches
from emo.local_sgd import train
from edge_app.overlay.trainer import Trainer
import numpy as np
import torch
train_set, _ = registry.load(Data())
net = split_network.network(Model(), 0)
list(train(net, [FixedBatches(train_set, np.arange(32), 16, 0).batch(0)], Training()))
overlay = Trainer(split_network.overlay(Model(), 0), Overlay())
x = net.trunk(torch.zeros(2, 1, 8, 8)).detach()
overlay.step([(x, torch.zeros(2, dtype=torch.int64))])
overlay.load(overlay.state())
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
