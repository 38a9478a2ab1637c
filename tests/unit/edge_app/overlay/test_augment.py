"""Augmentation: off unless asked for, the same seed gives the same rows, and what is mixed is mixed as the paper has it."""

import json

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from edge_app.overlay.augment import Augment, Rows, generator
from edge_app.overlay.trainer import Trainer, backward
from emo.config import Overlay
from emo.errors import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")


def rows(n=64, weights=None):
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (1, n), generator=random)
    return Rows(torch.randn(n, 2, 3, 5, generator=random), labels, weights)


def test_off_it_is_the_same_rows_with_a_seed_of_their_own():
    augment, given = Augment(Overlay()), rows()
    first, second = augment(given), augment(given)
    assert (first.activations, first.labels, first.weights) == (given.activations, given.labels, None)
    assert first.seed != second.seed


def test_flip_mirrors_half_of_the_maps_and_leaves_the_rest():
    given = rows(1000)
    copy = given.activations.clone()
    made = Augment(Overlay(flip=True))(given)
    mirrored = (made.activations == copy.flip(-1)).flatten(1).all(1)
    plain = (made.activations == copy).flatten(1).all(1)
    assert (mirrored ^ plain).all()
    assert 430 < mirrored.sum() < 570
    assert made.labels is given.labels
    assert torch.equal(given.activations, copy)
    with pytest.raises(ModelError, match=r"overlay\.flip.*\(8, 10\)"):
        Augment(Overlay(flip=True))(Rows(torch.zeros(8, 10), torch.zeros(1, 8, dtype=torch.int64)))


def test_mixup_joins_pairs_of_samples_with_one_share():
    given = rows(weights=torch.arange(64.0)[None])
    made = Augment(Overlay(mixup=0.4))(given)
    assert 0 <= made.share <= 1
    for n in range(64):
        mixes = made.share * given.activations[n] + (1 - made.share) * given.activations
        (other,) = torch.nonzero((made.activations[n] - mixes).flatten(1).abs().amax(1) < 1e-6).flatten().tolist()
        assert made.labels[:, n].tolist() == [given.labels[0, n], given.labels[0, other]]
        assert made.weights[:, n].tolist() == pytest.approx([made.share * n, (1 - made.share) * other], rel=1e-5)


def test_mixups_loss_is_that_of_zhang_et_al():
    made = Augment(Overlay(mixup=1.0))(rows())
    module = nn.Sequential(nn.Flatten(), nn.Linear(30, 4))
    each = backward(module, made, 64)
    ours = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    logits = module(made.activations)
    first, second = (cross_entropy(logits, labels) for labels in made.labels)
    (made.share * first + (1 - made.share) * second).backward()
    for grad, p in zip(ours, module.parameters(), strict=True):
        torch.testing.assert_close(grad, p.grad)
    torch.testing.assert_close(each.mean(1), torch.stack([first, second]).detach())


def test_the_trainer_returns_the_mixed_loss_of_each_batch():
    def trainer():
        torch.manual_seed(0)
        return Trainer(nn.Sequential(nn.Flatten(), nn.Linear(30, 4)), Overlay(mixup=1.0, flip=True))

    one, given = trainer(), rows()
    losses = one.step([(given.activations[:24], given.labels[0, :24]), (given.activations[24:], given.labels[0, 24:])])
    made = Augment(Overlay(mixup=1.0, flip=True))(given)
    each = backward(trainer()._module, made, 64)
    mixed = made.share * each[0] + (1 - made.share) * each[1]
    assert losses == pytest.approx([mixed[:24].mean().item(), mixed[24:].mean().item()], rel=1e-5)


def test_it_goes_on_from_its_state():
    one, two = (Augment(Overlay(mixup=0.4, flip=True, seed=3)) for _ in range(2))
    for _ in range(3):
        one(rows())
    two.resume(json.loads(json.dumps(one.state())))
    a, b = one(rows()), two(rows())
    assert torch.equal(a.activations, b.activations)
    assert a.share == b.share
    other = Augment(Overlay(mixup=0.4, flip=True, seed=4))(rows())
    assert other.share != Augment(Overlay(mixup=0.4, flip=True, seed=3))(rows()).share


@pytest.mark.parametrize("state", [{}, [], {"bit_generator": "MT19937"}, {"bit_generator": "PCG64", "state": 3}])
def test_a_state_that_is_none_is_refused(state):
    with pytest.raises(ModelError, match="random generator"):
        generator(state)
