"""What the controller goes by: the policy's own score, and a change that no rotation hides."""

import math

import numpy as np
import pytest

from edge_app.intervals.cka import cka
from edge_app.intervals.scoring import compare, relative_change
from edge_app.intervals.svcca import fold, svcca

pytestmark = pytest.mark.usefixtures("one_thread")

RNG = np.random.default_rng(0)
OLD = RNG.random((16, 8, 4, 4), np.float32)
NEW = OLD + 0.1 * RNG.standard_normal(OLD.shape).astype(np.float32)


def test_each_policy_has_its_score():
    change = np.linalg.norm(NEW - OLD) / np.linalg.norm(OLD)
    for policy, score in (("svcca", svcca), ("cka", cka)):
        assert compare(policy, OLD, NEW) == (score(fold(OLD), fold(NEW)), pytest.approx(change, rel=1e-5))
    assert compare("svcca", OLD, NEW) != compare("cka", OLD, NEW)


@pytest.mark.parametrize("policy", ["always", "once", "fixed(4)"])
def test_a_policy_that_asks_for_no_score_costs_none(policy, monkeypatch):
    monkeypatch.setattr("edge_app.intervals.scoring.fold", None)
    score, change = compare(policy, OLD, NEW)
    assert math.isnan(score)
    assert change == 0


@pytest.mark.parametrize("policy", ["svcca", "cka", "always"])
def test_a_first_version_is_like_nothing(policy):
    assert compare(policy, None, NEW) == (0.0, 0.0)


@pytest.mark.parametrize("policy", ["svcca", "cka"])
def test_nothing_can_be_said_of_constants_and_of_other_shapes(policy):
    for old, new in ((OLD[:8], NEW), (np.zeros_like(OLD), NEW), (OLD, np.ones_like(OLD))):
        assert math.isnan(compare(policy, old, new)[0])


@pytest.mark.parametrize("policy", ["svcca", "cka"])
def test_a_rotation_of_channels_is_like_to_the_score_and_far_to_the_change(policy):
    turn, _ = np.linalg.qr(RNG.standard_normal((8, 8)))
    score, change = compare(policy, OLD, np.einsum("ncxy,cd->ndxy", OLD, turn).astype(np.float32))
    assert score > 0.999
    assert change > 0.5


def test_relative_change():
    assert relative_change(OLD, OLD) == 0
    assert relative_change(OLD, -OLD) == pytest.approx(2)
    assert relative_change(0 * OLD, 0 * OLD) == 0
    assert relative_change(0 * OLD, OLD) == math.inf
    huge = np.full_like(OLD, 3e38)
    assert relative_change(huge, -huge) == pytest.approx(2)  # float32 would overflow
