"""FLOPs, bytes and memory of networks, against counts made by hand."""

import pytest
import torch
from torch import nn

from emo.config import Model
from emo.models import split_network
from testbed.timing import costs


def test_flops_of_a_convolution_and_a_linear_layer():
    # 8 outputs of 4x4, each a sum over 3x3x3; a multiply-add is two
    assert costs.flops(nn.Conv2d(3, 8, 3, padding=1), (3, 4, 4)) == 2 * 8 * 16 * 27
    assert costs.flops(nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), (8, 4, 4)) == 2 * 8 * 4 * 9
    assert costs.flops(nn.Linear(10, 7), (10,)) == 2 * 70


def test_flops_add_up_and_leave_the_module_as_it_was():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    before = split_network.weights(net)
    assert costs.part(net, (3, 5, 5)).flops == 2 * 25 * (12 + 8)
    assert net.training
    after = split_network.weights(net)
    assert all((before[name] == after[name]).all() for name in before)


def test_what_is_saved_is_what_autograd_keeps():
    # relu keeps its output, which is the linear layer's input: one storage, counted once
    net = nn.Sequential(nn.ReLU(), nn.Linear(6, 5))
    assert costs.saved(net, (6,)) == 4 * 6
    deeper = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3))
    assert costs.saved(deeper, (6,)) == 4 * (6 + 5)


def test_a_training_step_needs_its_weights_three_times_and_a_batch():
    part = costs.Part(flops=1, parameters=100, bytes=420, saved=40)
    assert costs.memory(part, 16, momentum=False) == 3 * 400 + 16 * 60
    assert costs.memory(part, 16, momentum=True) == 4 * 400 + 16 * 60


def test_parts_of_a_network():
    cost = costs.of(Model(name="cnn", width=0.5))
    net = split_network.network(Model(name="cnn", width=0.5), 0)
    assert (cost.trunk + cost.head).parameters == sum(each.numel() for each in net.parameters())
    assert (cost.trunk + cost.head).bytes == sum(each.nbytes for each in split_network.weights(net).values())
    assert cost.split == 4 * torch.Size(split_network.split_shape(Model(name="cnn", width=0.5))).numel()
    assert cost.overlay.flops > cost.head.flops


@pytest.mark.parametrize(("name", "parameters"), [("mobilenet6", 25_508), ("mobilenet12", 816_676)])
def test_parameters_of_the_papers_models(name, parameters):
    cost = costs.of(Model(name=name, norm="batch", input=(3, 32, 32), classes=100))
    assert (cost.trunk + cost.head).parameters == parameters
