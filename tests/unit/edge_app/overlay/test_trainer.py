"""The trainer learns, and no batch can break what it has learnt."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from edge_app.overlay.batch_filter import FilterState
from edge_app.overlay.checkpoint import CheckpointFile
from edge_app.overlay.trainer import Trainer
from emo.config import Overlay
from emo.errors import ModelError
from emo.journal import Journal

pytestmark = pytest.mark.usefixtures("one_thread")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))


def batch(seed=0, n=16):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    return torch.randn(n, 3, 6, 6, generator=generator) + labels[:, None, None, None], labels


def poisoned(what):
    activations, labels = (x.clone() for x in batch(1))
    if what.startswith("label"):
        labels[3] = int(what.split()[1])
    else:
        activations[0, 0, 0, 0] = {"nan": math.nan, "inf": math.inf, "huge": 3e38}[what]
    return activations, labels


def same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name])


def test_it_learns():
    trainer = Trainer(network(), Overlay(lr=0.05))
    losses = [trainer.step([batch(seed)])[0] for seed in range(40)]
    assert losses[-1] < 0.5 * losses[0]
    assert (trainer.steps, trainer.refused_steps, trainer.rollbacks) == (40, 0, 0)


@pytest.mark.parametrize("clip", [1e9, 0.3])
def test_a_step_is_sgd_on_all_its_batches_to_the_bit(clip):
    module, reference = network(), network()
    trainer = Trainer(module, Overlay(lr=0.1, momentum=0.5, weight_decay=0.01, clip=clip, average=0))
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.5, weight_decay=0.01)
    for seed in range(0, 12, 3):
        batches = [batch(seed), batch(seed + 1, 7), batch(seed + 2, 16)]
        optimizer.zero_grad()
        logits, labels = reference(torch.cat([x for x, _ in batches])), torch.cat([y for _, y in batches])
        cross_entropy(logits, labels).backward()
        nn.utils.clip_grad_norm_(reference.parameters(), clip)
        optimizer.step()
        losses = trainer.step(batches, weights=[1.0] * 3 if seed else None)
        ends = (0, 16, 23, 39)
        expected = [cross_entropy(logits[a:b], labels[a:b]).item() for a, b in pairwise(ends)]
        assert losses == pytest.approx(expected, rel=1e-5)
    same(trainer.weights(), {name: value.numpy() for name, value in reference.state_dict().items()})


def test_weights_of_batches_weigh_the_gradient_and_not_what_is_returned():
    settings = Overlay(lr=0.1, momentum=0, weight_decay=0, clip=1e9, average=0)
    weighted, reference = Trainer(network(), settings), network()
    batches, weights = [batch(0), batch(1, 4)], [0.25, 3.0]
    logits = reference(torch.cat([x for x, _ in batches]))
    parts = [cross_entropy(a, y, reduction="sum") for a, (_, y) in zip(logits.split([16, 4]), batches, strict=True)]
    ((0.25 * parts[0] + 3.0 * parts[1]) / 20).backward()
    with torch.no_grad():
        for p in reference.parameters():
            p.sub_(0.1 * p.grad)
    losses = weighted.step(batches, weights)
    assert losses == pytest.approx([parts[0].item() / 16, parts[1].item() / 4], rel=1e-5)
    for name, value in weighted.weights().items():
        np.testing.assert_allclose(value, reference.state_dict()[name].numpy(), rtol=1e-5, atol=1e-6)


def test_what_is_given_is_the_running_average_and_training_goes_on_from_the_last_step():
    averaged, plain = (Trainer(network(), Overlay(lr=0.1, average=average)) for average in (0.75, 0.0))
    mean = plain.weights()
    for seed in range(60):
        assert averaged.step([batch(seed)]) == plain.step([batch(seed)])
        kept = min(0.75, (seed + 1) / (seed + 10))
        mean = {name: kept * mean[name] + (1 - kept) * value for name, value in plain.weights().items()}
    parameters, last = dict(network().named_parameters()), plain.weights()
    for name, value in averaged.weights().items():
        expected = mean[name] if name in parameters else last[name]  # batch norm's figures are averages already
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)
    assert any(not np.allclose(mean[name], last[name], rtol=1e-3) for name in parameters)


def test_no_step_is_longer_than_the_clip_allows():
    module = network()
    trainer = Trainer(module, Overlay(lr=1.0, momentum=0.0, weight_decay=0.0, clip=0.01))
    before = [parameter.detach().clone() for parameter in module.parameters()]
    activations, _ = batch(0)
    pull = [(activations * 100, torch.zeros(len(activations), dtype=torch.int64))]  # one class: pulls hard
    trainer.step(pull)
    moved = sum(((now - old) ** 2).sum().item() for now, old in zip(module.parameters(), before, strict=True))
    assert 0 < moved**0.5 <= 0.0101


def test_cosine_ends_at_a_hundredth_of_the_rate():
    def moved(schedule, progress):
        settings = Overlay(lr=0.1, momentum=0, weight_decay=0, clip=1e9, average=0, schedule=schedule)
        trainer = Trainer(network(), settings)
        before = trainer.weights()["4.weight"]
        trainer.step([batch(0)], progress=progress)
        return np.linalg.norm(trainer.weights()["4.weight"] - before)

    full = moved("constant", 0.0)
    assert moved("constant", 1.0) == full
    shares = [moved("cosine", progress) / full for progress in (-1, 0, 0.5, 1, 7)]
    assert shares == pytest.approx([1, 1, 0.505, 0.01, 0.01], rel=1e-3)


# -- what is refused, and the way back


@pytest.mark.parametrize("bad", ["nan", "inf", "huge", "label 4", "label -1", "label -100"])
def test_a_bad_batch_changes_nothing(bad):
    trainer, twin = Trainer(network(), Overlay()), Trainer(network(), Overlay())
    for each in (trainer, twin):
        each.step([batch(0)])
    before = trainer.weights()
    assert np.isnan(trainer.step([batch(3), poisoned(bad)])).tolist() == [True, True]
    assert (trainer.steps, trainer.refused_steps, trainer.rollbacks) == (1, 1, 0)
    same(trainer.weights(), before)
    assert trainer.step([batch(2)]) == twin.step([batch(2)])  # momentum too is as if it had not been


class Root(nn.Module):
    """Finite, with an infinite slope at 0."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return x + self.w.sqrt()


def test_a_gradient_that_is_not_finite_is_refused():
    trainer = Trainer(Root(), Overlay())
    assert math.isnan(trainer.step([(torch.zeros(2, 4), torch.tensor([0, 1]))])[0])
    assert (trainer.weights()["w"] == 0).all()


def test_a_buffer_that_is_not_finite_is_refused():
    module = nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.Linear(2, 2))
    trainer = Trainer(module, Overlay())
    x = torch.tensor([[0.0, 3e38], [0.0, -3e38]])  # the variance overflows, and what is divided by it is 0
    assert math.isnan(trainer.step([(x, torch.tensor([0, 1]))])[0])
    assert trainer.weights()["0.running_var"].tolist() == [1, 1]


class Masked(nn.Module):
    """A mask of -inf is a buffer, and no step's fault."""

    def __init__(self):
        super().__init__()
        self.classify = nn.Linear(108, 4)
        self.register_buffer("mask", torch.tensor([0.0, 0.0, 0.0, -math.inf]))

    def forward(self, x):
        attention = (x.reshape(len(x), 27, 4) + self.mask).softmax(2)
        return self.classify(attention.flatten(1))


def test_a_constant_buffer_may_hold_what_is_not_finite(tmp_path):
    trainer = Trainer(Masked(), Overlay(checkpoint_steps=3))
    for seed in range(4):
        assert math.isfinite(trainer.step([batch(seed)])[0])
    assert (trainer.steps, trainer.refused_steps, trainer.rollbacks, trainer.kept.steps) == (4, 0, 0, 3)
    with CheckpointFile(tmp_path, Journal()) as file:
        file.save("run", trainer.state(), {}, FilterState())
    found = CheckpointFile(tmp_path, Journal()).load("run", Trainer(Masked(), Overlay()).state())
    assert found.state.steps == 4
    assert math.isnan(trainer.step([poisoned("nan")])[0])  # what is learnt is judged as ever


def test_ten_refused_steps_in_a_row_go_back_to_the_checkpoint():
    trainer = Trainer(network(), Overlay(checkpoint_steps=3, average=0.5))
    for seed in range(4):
        if trainer.steps == 3:
            kept = trainer.weights()
        trainer.step([batch(seed)])
    for _ in range(9):
        trainer.step([poisoned("nan")])
    trainer.step([batch(9)])  # a good one in between: not in a row
    for turn in range(10):
        assert (trainer.rollbacks, trainer.steps) == (0, 5), turn
        trainer.step([poisoned("nan")])
    assert (trainer.rollbacks, trainer.steps, trainer.refused_steps) == (1, 3, 19)
    same(trainer.weights(), kept)
    # Momentum starts from zero: the next step is that of a new optimizer.
    fresh = network()
    fresh.load_state_dict({k.removeprefix("weights/"): v for k, v in trainer.kept.arrays.items() if "weights/" in k})
    other = Trainer(fresh, Overlay(average=0.5))
    assert trainer.step([batch(7)]) == other.step([batch(7)])
    assert trainer.step([batch(8)]) == other.step([batch(8)])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_go_back_at_once(value):
    module = network()
    trainer = Trainer(module, Overlay(checkpoint_steps=2))
    for seed in range(3):
        trainer.step([batch(seed)])
    with torch.no_grad():
        module[0].weight[0, 0, 0, 0] = value
    trainer.step([batch(5)])
    assert (trainer.rollbacks, trainer.steps) == (1, 2)
    assert math.isfinite(trainer.step([batch(6)])[0])


def test_a_state_that_is_not_finite_is_never_kept():
    class Dead(nn.Module):
        """Its second parameter has no part in the result, and shows only where the state is looked at."""

        def __init__(self):
            super().__init__()
            self.w, self.dead = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return x + self.w

    module = Dead()
    trainer = Trainer(module, Overlay(checkpoint_steps=2))
    data = [(torch.zeros(2, 4), torch.tensor([0, 1]))]
    trainer.step(data)
    with torch.no_grad():
        module.dead[0] = math.inf
    assert math.isfinite(trainer.step(data)[0])
    assert (trainer.rollbacks, trainer.kept.steps, module.dead.item()) == (1, 0, 0)


# -- what is given away


def test_weights_hold_the_buffers_and_are_copies():
    trainer = Trainer(network(), Overlay())
    before = trainer.weights()
    assert {"1.running_mean", "1.num_batches_tracked"} <= before.keys()
    kept = {name: value.copy() for name, value in before.items()}
    trainer.step([batch(0)])
    same(before, kept)
    assert (trainer.weights()["0.weight"] != before["0.weight"]).any()
    assert trainer.weights()["1.num_batches_tracked"] == 1


def test_only_what_can_be_trained_is_trained():
    module = network()
    module[0].weight.requires_grad_(False)
    trainer = Trainer(module, Overlay())
    before = trainer.weights()
    trainer.step([batch(0)])
    np.testing.assert_array_equal(trainer.weights()["0.weight"], before["0.weight"])
    assert (trainer.weights()["4.weight"] != before["4.weight"]).any()


def test_evaluation_is_of_the_average_and_changes_nothing():
    module, reference = network(), network()
    trainer, twin = Trainer(module, Overlay(lr=0.1)), Trainer(network(), Overlay(lr=0.1))
    for seed in range(5):
        trainer.step([batch(seed)])
        twin.step([batch(seed)])
    reference.load_state_dict({name: torch.from_numpy(value) for name, value in trainer.weights().items()})
    reference.eval()
    module[1].eval()  # a part that somebody froze stays so
    tests = [batch(20), batch(21, 5)]
    loss, accuracy = trainer.evaluate(tests)
    logits, labels = reference(torch.cat([x for x, _ in tests])), torch.cat([y for _, y in tests])
    assert loss == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert [part.training for part in module] == [True, False, True, True, True]
    module[1].train()
    assert trainer.step([batch(6)]) == twin.step([batch(6)])
    same(trainer.weights(), twin.weights())
    assert all(math.isnan(figure) for figure in trainer.evaluate([]))


def test_a_compiler_that_fails_is_named_with_its_key(monkeypatch):
    def compiled(_module):
        def fails(_x):
            raise RuntimeError("no C++ compiler")

        return fails

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(ModelError, match=r"overlay\.compile.*no C\+\+ compiler"):
        Trainer(network(), Overlay(compile=True)).step([batch(0)])
