"""Counts that a device claims: what they can move at its edge is bounded by what the run allows, and nothing overflows."""

import contextlib

import numpy as np
import pytest
from fleet import MODEL

from edge_app.cache.disk import DiskCache
from edge_app.cache.replay_cache import ReplayCache
from edge_app.device_quota import DeviceQuota
from edge_app.intervals.controller import Controller, ControllerState, Row
from edge_app.node import EdgeNode
from emo.config import EdgeConfig
from emo.journal import Journal
from emo.models import split_network
from emo.wire.codec import Packed
from emo.wire.messages import ActivationBatch, OverlayWeights, RunState, TapReport

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (4, *split_network.split_shape(MODEL))
MOST = 2**53 - 1


@pytest.fixture
def edge(tmp_path):
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(DiskCache(tmp_path, durability="none"))
        cache = stack.enter_context(contextlib.closing(ReplayCache(disk, 1 << 20, 0)))
        config = EdgeConfig.model_validate(
            {
                "id": "e",
                "devices": ["a", "b"],
                "model": MODEL,
                "overlay": {"batches": 1, "replay_ratio": 1, "patience_s": 2},
            }
        )
        node = EdgeNode(config, cache, Journal())
        tell(node, RunState("run", 1, 3, "training"))
        yield node


def tell(node, *messages):
    return [answer for message in messages for answer in node.handle(message, 0.0)]


def batch(device, number, version=1):
    values = np.random.default_rng([number, version]).random(SHAPE, np.float32)
    return ActivationBatch("run", "e", device, number, version, Packed(values), np.arange(4, dtype="<i4"))


def report(device, attempted, sent=0, round=1):
    return TapReport("run", "e", device, round, attempted, sent)


def steps(node, most=500):
    found = []
    while len(found) < most and (more := list(node.work(10.0))):
        found += more
    return found


def finish(node):
    tell(node, RunState("run", 3, 3, "finishing"))
    return list(node.work(10.0))


@pytest.mark.parametrize("first", [[report("a", MOST, MOST)], [report("a", MOST), report("b", MOST)]])
def test_a_report_that_comes_first_buys_no_training_and_ends_no_overlay(edge, first):
    tell(edge, *first)
    tell(edge, *(batch(device, number) for number in range(3) for device in "ab"))
    tell(edge, report("b", 3, 3))
    assert steps(edge) == [None] * 6
    (overlay,) = finish(edge)
    assert isinstance(overlay, OverlayWeights)
    assert (overlay.steps, overlay.attempted, overlay.sent) == (6, 6, 3)


def test_a_report_counts_for_as_many_batches_as_its_device_can_have_offered(edge):
    tell(edge, batch("a", 0), batch("a", 1), batch("a", 0, version=2))
    tell(edge, report("a", MOST, MOST))
    most = 3 * 5  # what has come, and four that were skipped before each: controller.max_interval
    assert edge.snapshot().node.quota.reports == {"a": (most, most)}
    assert steps(edge) == [None] * most
    assert isinstance(finish(edge)[0], OverlayWeights)


@pytest.mark.parametrize(("policy", "most"), [("always", 1), ("fixed(3)", 4), ("svcca", 5), ("once", 129)])
def test_a_policy_says_how_many_attempts_there_are_for_one_batch_that_comes(policy, most):
    assert Controller(policy).attempts == most


def test_a_sum_of_counts_is_a_count():
    quota = DeviceQuota(10, Journal())
    for device in "ab":
        quota.report(report(device, MOST, MOST), MOST)
    assert (quota.attempted, quota.sent) == (MOST, MOST)


def test_what_is_known_of_a_device_after_a_restart_bounds_it_too():
    known = Controller()
    known.state = ControllerState.of([Row("a", 0, 1, 0.0, 1.0), Row("a", 7, 1, 0.0, 1.0), Row("b", 0, 1, 0.0, 1.0)])
    known.received("b", 0, 0.9)
    known.received("b", 1, 0.0)
    assert (known.batches("a"), known.batches("b")) == (2, 2)
