"""Local SGD by steps, and evaluation that leaves no trace."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from emo.config import Data, Model, Training
from emo.data import registry
from emo.data.batches import Batch, FixedBatches, tensors
from emo.data.dataset import Dataset
from emo.local_sgd import evaluate, train
from emo.models import split_network

SPEC = Model(name="cnn", norm="batch", width=0.5)


pytestmark = pytest.mark.usefixtures("one_thread")


def stream(rounds=1, rows=200):
    batches = FixedBatches(registry.load(Data())[0], np.arange(rows), 16, seed=0)
    return (batches.batch(j) for r in range(rounds) for j in batches.order(r, 0))


def run(between=lambda net: None, momentum=0.5):
    net = split_network.network(SPEC, seed=0)
    losses = []
    for loss in train(net, stream(), Training(lr=0.05, momentum=momentum)):
        losses.append(loss)
        between(net)
    return losses, split_network.weights(net)


def test_a_step_is_sgd_on_the_mean_cross_entropy():
    net = nn.Linear(3, 2)
    batch = Batch(0, torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
    weight = net.weight.detach().clone()
    loss = cross_entropy(net(batch.inputs), batch.labels)
    (gradient,) = torch.autograd.grad(loss, [net.weight])
    assert list(train(net, [batch], Training(lr=0.1))) == [loss.item()]
    assert torch.allclose(net.weight, weight - 0.1 * gradient, atol=1e-7)


def test_it_learns_the_digits():
    net = split_network.network(SPEC, seed=0)
    _, test = registry.load(Data())
    before, _ = evaluate(net, test)
    losses = list(train(net, stream(rounds=6, rows=800), Training(lr=0.05)))
    after, _ = evaluate(net, test)
    assert len(losses) == 300
    assert before < 0.4
    assert after > 0.85
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) / 2


def test_the_caller_may_look_between_steps_and_the_bits_are_the_same():
    _, test = registry.load(Data())

    def look(net):
        evaluate(net, test)
        split_network.weights(net)
        torch.rand(1)

    losses, weights = run()
    looked_losses, looked = run(between=look)
    assert losses == looked_losses
    assert all(np.array_equal(weights[name], looked[name]) for name in weights)
    assert losses != run(momentum=0.0)[0]


def test_it_takes_a_batch_only_when_asked_for_a_step():
    taken = []

    def watched():
        for batch in stream():
            taken.append(batch.id)
            yield batch

    steps = train(split_network.network(SPEC, seed=0), watched(), Training())
    assert taken == []
    next(steps)
    assert len(taken) == 1


def test_a_loss_that_is_not_finite_is_the_callers_to_judge():
    net = split_network.network(SPEC, seed=0)
    with torch.no_grad():
        net.head[1].weight.fill_(math.nan)
    assert math.isnan(next(train(net, stream(), Training())))


def test_evaluate_counts_every_sample_once_whatever_the_batch_size():
    _, test = registry.load(Data())
    net = split_network.network(SPEC, seed=3)
    list(train(net, stream(), Training(lr=0.05)))
    net.trunk.eval()
    modes = [m.training for m in net.modules()]
    before = split_network.weights(net)
    accuracy, loss = evaluate(net, test)
    assert evaluate(net, test, batch_size=100) == (accuracy, pytest.approx(loss, rel=1e-5))
    assert [m.training for m in net.modules()] == modes
    assert all(np.array_equal(before[k], v) for k, v in split_network.weights(net).items())
    with split_network.inference(net):
        inputs, labels = tensors(test, slice(None))
        logits = net(inputs)
    assert accuracy == (logits.argmax(1) == labels).double().mean().item()
    assert loss == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-5)


def test_evaluate_takes_a_module_without_weights():
    one = np.ones(2, np.float32)
    images = np.array([[5, 1], [1, 5], [5, 1]], np.float32)
    dataset = Dataset(images, np.array([0, 1, 1]), ("a", "b"), 0 * one, one)
    accuracy, _ = evaluate(nn.Identity(), dataset)
    assert accuracy == 2 / 3
