"""Shares chosen by held-out data: what they gain, what they never lose, and that they are the best."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cloud_app.ensemble.member_weights import accuracy, fit, votes
from cloud_app.ensemble.model import Ensemble, combined
from emo.data.dataset import Dataset

torch.set_num_threads(1)

COMBINE = ["probabilities", "logits"]


def _each(members, samples=300, classes=4, seed=0, sure=1.0):
    """Logits of members that know the truth more or less: `members` says how much each."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    truth = np.eye(classes)[labels]
    each = [sure * know * truth + rng.standard_normal((samples, classes)) for know in members]
    return torch.tensor(np.array(each), dtype=torch.float32), labels


def _likelihood(each, labels, shares, combine):
    """At the best temperature."""
    logits = combined(each.double(), torch.tensor(shares, dtype=torch.float64), combine)
    scales = torch.logspace(-1, 1, 60, dtype=torch.float64).view(-1, 1, 1)
    rows = torch.arange(len(labels)), torch.from_numpy(labels)
    return float((logits * scales).log_softmax(2)[:, *rows].mean(1).max())


def test_unasked_shares_are_equal():
    each, labels = _each([1, 0, 2])
    assert fit(each, labels, "probabilities", "none").tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("combine", COMBINE)
def test_who_knows_more_gets_more(combine):
    each, labels = _each([1.0, 0.2, 2.0])
    shares = fit(each, labels, combine, "weights")
    assert shares[2] > shares[0] > shares[1] > 0
    assert float(shares.sum()) == pytest.approx(1)


@pytest.mark.parametrize("combine", COMBINE)
def test_no_other_shares_are_likelier(combine):
    each, labels = _each([1.0, 0.4, 1.5], samples=500)
    found = fit(each, labels, combine, "weights").tolist()
    best = _likelihood(each, labels, found, combine)
    grid = np.linspace(0.03, 0.93, 13)
    others = [(a, b, 1 - a - b) for a in grid for b in grid if a + b < 0.99]
    assert best >= max(_likelihood(each, labels, shares, combine) for shares in others) - 2e-3
    assert best > _likelihood(each, labels, [1 / 3] * 3, combine) + 5e-3


@pytest.mark.parametrize("combine", COMBINE)
def test_a_member_that_harms_is_left_out(combine):
    each, labels = _each([1.5, 1.5, -4.0])  # the last is sure of what is wrong
    shares = fit(each, labels, combine, "members")
    assert shares.tolist() == pytest.approx([0.5, 0.5, 0])


def test_a_member_that_takes_nothing_away_stays():
    each, labels = _each([3.0, 3.0], sure=10)
    assert fit(each, labels, "probabilities", "members").tolist() == [0.5, 0.5]


def test_likelier_shares_that_answer_worse_are_not_taken():
    each, labels = _each([1.0, 0.5], samples=40, seed=3)
    assert fit(each, labels, "logits", "weights").tolist() == [0.5, 0.5]


def test_both_weighs_those_that_stay():
    each, labels = _each([2.0, 0.8, -4.0])
    shares = fit(each, labels, "probabilities", "both")
    assert shares[2] == 0
    assert shares[0] > shares[1]


def test_one_member_is_left():
    each, labels = _each([1.0])
    for what in ("none", "weights", "members", "both"):
        assert fit(each, labels, "logits", what).tolist() == [1.0]


@settings(max_examples=40, deadline=None)
@given(
    know=st.lists(st.floats(-3, 3), min_size=1, max_size=5),
    seed=st.integers(0, 99),
    combine=st.sampled_from(COMBINE),
    what=st.sampled_from(["weights", "members", "both"]),
    samples=st.integers(1, 80),
)
def test_held_out_accuracy_never_falls_and_shares_are_shares(know, seed, combine, what, samples):
    each, labels = _each(know, samples=samples, seed=seed)
    shares = fit(each, labels, combine, what)
    assert (shares >= 0).all()
    assert float(shares.sum()) == pytest.approx(1, abs=1e-5)
    equal = torch.full_like(shares, 1 / len(shares))
    assert accuracy(each, shares, combine, labels) >= accuracy(each, equal, combine, labels)
    assert torch.equal(shares, fit(each, labels, combine, what))


@pytest.mark.parametrize("combine", COMBINE)
def test_a_member_that_rules_a_class_out_breaks_nothing(combine):
    each, labels = _each([1.0, 1.0])
    each[1, :, 0] = -1e4  # its edge never saw class 0
    shares = fit(each, labels, combine, "weights")
    assert torch.isfinite(shares).all()
    assert shares[0] > 0.5


def test_votes_are_what_each_member_says_image_by_image():
    torch.manual_seed(0)
    scale = np.full(1, 9, np.float32)
    members = [nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(2)]
    images = np.random.default_rng(0).integers(0, 256, (7, 1, 2, 2), np.uint8)
    dataset = Dataset(images, np.zeros(7, np.int64), tuple("abc"), scale, scale)
    module = Ensemble(nn.Identity(), members, scale, scale)
    expected = [Ensemble(nn.Identity(), [one], scale, scale, combine="logits") for one in members]
    found = votes(module, dataset, batch_size=3)
    assert found.shape == (2, 7, 3)
    for mine, one in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, one(torch.from_numpy(images))[0])
