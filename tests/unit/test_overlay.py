"""The trainer learns, and no batch can break what it has learnt."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from edge_app.overlay import Trainer
from emo.config import Overlay

pytestmark = pytest.mark.usefixtures("one_thread")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))


def batch(seed=0, n=16):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    return torch.randn(n, 3, 6, 6, generator=generator) + labels[:, None, None, None], labels


def test_it_learns():
    trainer = Trainer(network(), Overlay(lr=0.05))
    losses = [trainer.step(*batch(seed)) for seed in range(40)]
    assert losses[-1] < 0.5 * losses[0]
    assert (trainer.steps, trainer.refused_steps) == (40, 0)


def test_a_step_is_sgd_with_the_settings():
    module, reference = network(), network()
    settings = Overlay(lr=0.1, momentum=0.5, weight_decay=0.01, clip=1e9, average=0)
    trainer = Trainer(module, settings)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.5, weight_decay=0.01)
    for seed in range(3):
        activations, labels = batch(seed)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(reference(activations), labels)
        loss.backward()
        optimizer.step()
        assert trainer.step(activations, labels) == loss.item()
    for name, value in reference.state_dict().items():
        np.testing.assert_array_equal(trainer.weights()[name], value.numpy())


def test_what_is_given_is_the_running_average_and_training_goes_on_from_the_last_step():
    averaged, plain = (Trainer(network(), Overlay(lr=0.1, average=average)) for average in (0.75, 0.0))
    mean = plain.weights()
    for seed in range(60):
        assert averaged.step(*batch(seed)) == plain.step(*batch(seed))
        kept = min(0.75, (seed + 1) / (seed + 10))
        mean = {name: kept * mean[name] + (1 - kept) * value for name, value in plain.weights().items()}
    parameters, last = dict(network().named_parameters()), plain.weights()
    for name, value in averaged.weights().items():
        expected = (
            mean[name] if name in parameters else last[name]
        )  # batch norm's figures are averages already
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)
    assert any(not np.allclose(mean[name], last[name], rtol=1e-3) for name in parameters)


def test_no_step_is_longer_than_the_clip_allows():
    module = network()
    trainer = Trainer(module, Overlay(lr=1.0, momentum=0.0, weight_decay=0.0, clip=0.01))
    before = [parameter.detach().clone() for parameter in module.parameters()]
    activations, _ = batch(0)
    trainer.step(activations * 100, torch.zeros(len(activations), dtype=torch.int64))  # one class: pulls hard
    moved = sum(((now - old) ** 2).sum().item() for now, old in zip(module.parameters(), before, strict=True))
    assert 0 < moved**0.5 <= 0.0101


@pytest.mark.parametrize("bad", ["nan", "inf", "huge", "label 4", "label -1"])
def test_a_bad_batch_changes_nothing(bad):
    trainer, twin = Trainer(network(), Overlay()), Trainer(network(), Overlay())
    for each in (trainer, twin):
        each.step(*batch(0))
    before = trainer.weights()
    activations, labels = (x.clone() for x in batch(1))
    if bad.startswith("label"):
        labels[3] = int(bad.split()[1])
    else:
        activations[0, 0, 0, 0] = {"nan": math.nan, "inf": math.inf, "huge": 3e38}[bad]
    assert math.isnan(trainer.step(activations, labels))
    assert (trainer.steps, trainer.refused_steps) == (1, 1)
    assert trainer.weights().keys() == before.keys()
    for name, value in trainer.weights().items():
        np.testing.assert_array_equal(value, before[name])
    assert trainer.step(*batch(2)) == twin.step(*batch(2))  # momentum too is as if it had not been


def test_a_gradient_that_is_not_finite_is_refused():
    class Edge(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(4))

        def forward(self, x):
            return x + self.w.sqrt()  # finite, with an infinite slope at 0

    trainer = Trainer(Edge(), Overlay())
    assert math.isnan(trainer.step(torch.zeros(2, 4), torch.tensor([0, 1])))
    assert (trainer.weights()["w"] == 0).all()


def test_weights_hold_the_buffers_and_are_copies():
    trainer = Trainer(network(), Overlay())
    before = trainer.weights()
    assert {"1.running_mean", "1.num_batches_tracked"} <= before.keys()
    kept = {name: value.copy() for name, value in before.items()}
    trainer.step(*batch(0))
    for name, value in before.items():
        np.testing.assert_array_equal(value, kept[name])
    assert (trainer.weights()["0.weight"] != before["0.weight"]).any()
    assert trainer.weights()["1.num_batches_tracked"] == 1


def test_only_what_can_be_trained_is_trained():
    module = network()
    module[0].weight.requires_grad_(False)
    trainer = Trainer(module, Overlay())
    before = trainer.weights()
    trainer.step(*batch(0))
    np.testing.assert_array_equal(trainer.weights()["0.weight"], before["0.weight"])
    assert (trainer.weights()["4.weight"] != before["4.weight"]).any()
