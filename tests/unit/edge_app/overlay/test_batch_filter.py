"""Whose batches an overlay trains on: labels against the FL model's head, scales against other devices', and no batch
that its step cannot bear."""

import contextlib
import math

import numpy as np
import pytest
import torch
from fleet import MODEL, Fleet
from pydantic import ValidationError
from torch import nn

from edge_app.cache.disk import DiskCache
from edge_app.cache.replay_cache import ReplayCache, Sample
from edge_app.node import EdgeNode
from edge_app.overlay.batch_filter import BatchFilter, FilterState
from edge_app.overlay.replay_training import ReplayTraining
from edge_app.overlay.trainer import Trainer
from emo.config import EdgeConfig, Overlay
from emo.errors import WireError
from emo.journal import Journal
from emo.models import split_network
from emo.wire.codec import Packed
from emo.wire.messages import ActivationBatch, GlobalHead, RunState, TapReport

pytestmark = pytest.mark.usefixtures("one_thread")

DEVICES = [f"d{number}" for number in range(5)]
CLASSES = 4


def head(sharp=8.0):
    """Knows that class k is where feature k is lit."""
    made = nn.Linear(CLASSES, CLASSES, bias=False)
    with torch.no_grad():
        made.weight.copy_(sharp * torch.eye(CLASSES))
    return made


def sample(device, flipped=False, scale=1.0, n=8, only=None, seed=0):
    labels = torch.arange(n) % CLASSES if only is None else torch.full((n,), only)
    noise = 0.1 * torch.randn(n, CLASSES, generator=torch.Generator().manual_seed(seed))
    activations = scale * (nn.functional.one_hot(labels, CLASSES) + noise)
    return Sample(device, seed, 1, activations, CLASSES - 1 - labels if flipped else labels)


def judge(sharp=8.0):
    made = BatchFilter(CLASSES, Journal())
    made.head = head(sharp)
    return made


def chosen(one, samples):
    return [each.device for each in one.choose(samples)[0]]


def test_labels_that_the_fl_model_finds_less_likely_than_a_guess_are_left_out_and_said():
    one = judge()
    for seed in range(4):
        given = [sample(device, device == "d2", seed=seed) for device in DEVICES]
        found = chosen(one, given)
    assert found == ["d0", "d1", "d3", "d4"]
    assert one.state.distrusted == {"d2"}
    assert one._journal.counts["devices.distrusted"] == 1
    assert one._journal.counts["overlay.left_out"] >= 3
    for seed in range(30):  # it has mended its ways
        found = chosen(one, [sample(device, seed=seed) for device in DEVICES])
    assert (found, one.state.distrusted) == (DEVICES, set())


def test_one_batch_with_wrong_labels_is_left_out_of_a_device_that_is_believed():
    one = judge()
    for seed in range(5):
        chosen(one, [sample(device, seed=seed) for device in DEVICES])
    assert chosen(one, [sample("d1"), sample("d2", flipped=True)]) == ["d1"]
    assert one.state.distrusted == set()


def test_a_device_with_a_class_of_its_own_is_believed():
    one = judge()
    for seed in range(5):
        given = [sample("d0", only=3, seed=seed), *(sample(d, only=0, seed=seed) for d in DEVICES[1:])]
        assert chosen(one, given) == DEVICES


@pytest.mark.parametrize("sharp", [None, 0.0, -8.0])
def test_without_a_head_or_with_one_that_has_learnt_nothing_all_are_believed(sharp):
    one = judge(sharp or 0.0)
    if sharp is None:
        one.head = None
    for seed in range(5):
        assert chosen(one, [sample(device, device == "d2", seed=seed) for device in DEVICES]) == DEVICES


@pytest.mark.parametrize(("scale", "kept"), [(1.5, True), (10, False), (1e6, False), (1e15, False)])
def test_a_scale_far_above_the_other_devices_is_set_aside(scale, kept):
    one = judge(0.0)
    one.head = None
    for seed in range(3):
        taken, wrong = one.choose([sample(d, scale=scale if d == "d3" else 1.0, seed=seed) for d in DEVICES])
    assert ("d3" in [each.device for each in taken]) == kept
    assert [each.device for each in wrong] == ([] if kept else ["d3"])
    assert {"d0", "d1", "d2", "d4"} <= {each.device for each in taken}


def test_of_two_devices_nobody_can_say_whose_scale_is_odd():
    one = judge()
    assert len(one.choose([sample("d0"), sample("d1", scale=1e6)])[0]) == 2


def test_a_batch_with_more_samples_than_usual_has_no_larger_part_of_the_step():
    one = judge()
    taken, _ = one.choose([sample("d0"), sample("d1"), sample("d2", n=64), sample("d1", n=3)])
    taken, _ = one.choose([sample("d0"), sample("d2", n=64), sample("d1", n=3)])
    assert [each.weight for each in taken] == [1.0, 0.125, 1.0]


def test_what_is_known_goes_on_after_a_restart():
    one, two = judge(), judge()
    for seed in range(4):
        one.choose([sample(device, device == "d2", seed=seed) for device in DEVICES])
    two.state = FilterState.model_validate_json(one.state.model_dump_json())
    assert two.state == one.state
    assert two.state.distrusted == {"d2"}
    for damage in ({"losses": {"d0": math.nan}}, {"scales": [1]}, {"sizes": {"d0": -1}}):
        with pytest.raises(ValidationError):
            FilterState.model_validate(one.state.model_dump() | damage)


# -- at an edge


SHAPE = (8, *split_network.split_shape(MODEL))


@pytest.fixture
def edge(tmp_path):
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(DiskCache(tmp_path, durability="none"))
        cache = stack.enter_context(contextlib.closing(ReplayCache(disk, 1 << 22, 0)))
        values = {"id": "e", "devices": DEVICES, "model": MODEL, "overlay": {"batches": 2}}
        node = EdgeNode(EdgeConfig.model_validate(values), cache, Journal())
        list(node.handle(RunState("run", 1, 9, "training"), 0.0))
        yield node


def offer(node, device, scale=1.0, number=0, version=1):
    values = np.random.default_rng([number, version]).random(SHAPE, np.float32) * np.float32(scale)
    labels = np.arange(8, dtype="<i4") % MODEL.classes
    batch = ActivationBatch("run", "e", device, number, version, Packed(values), labels)
    return list(node.handle(batch, 0.0))


def test_a_batch_that_is_set_aside_is_gone_until_a_newer_version_comes(edge):
    for number in range(2):
        for device in DEVICES:
            offer(edge, device, 1e6 if device == "d1" else 1.0, number)
    list(edge.handle(TapReport("run", "e", "d0", 1, 50, 50), 0.0))
    while list(edge.work(0.0)):
        pass
    assert edge._journal.counts["overlay.set_aside"] == 2
    assert edge.gauges()["cache.entries"] == 8
    assert offer(edge, "d1") == offer(edge, "d1")  # the same version does not come back
    assert edge.gauges()["cache.entries"] == 8
    assert offer(edge, "d1", version=2)
    assert edge.gauges()["cache.entries"] == 9


def test_what_is_too_large_to_compute_with_is_refused(edge):
    with pytest.raises(WireError, match="too large"):
        offer(edge, "d0", 3e38)
    assert edge.gauges()["cache.entries"] == 0


class Picky(nn.Module):
    """Its loss is not finite on samples that are all 0.5."""

    def __init__(self):
        super().__init__()
        self.classify = nn.Linear(math.prod(SHAPE[1:]), MODEL.classes)

    def forward(self, x):
        return self.classify(x.flatten(1)) + torch.where((x == 0.5).all(), math.nan, 0.0)


def test_the_batch_for_which_a_step_was_refused_is_set_aside_and_no_other(tmp_path):
    with DiskCache(tmp_path, durability="none") as disk:
        cache = ReplayCache(disk, 1 << 22, 0, prefetch=False)
        settings = Overlay(batches=3, replay_ratio=100)
        journal = Journal()

        class Whole(Trainer):
            """A step's batches stand and fall together, as under batch norm."""

            def step(self, batches, weights=None, progress=0.0):
                if any((x == 0.5).all() for x, _ in batches):
                    batches = [(x * math.nan, y) for x, y in batches]
                return super().step(batches, weights, progress)

        training = ReplayTraining(
            settings, cache, journal, lambda: Whole(Picky(), settings), None, BatchFilter(4, journal)
        )
        training.begin("run")
        labels = np.arange(8) % MODEL.classes
        for device in DEVICES:
            values = np.random.default_rng(3).random(SHAPE, np.float32)
            cache.put(device, 0, 1, np.full_like(values, 0.5) if device == "d4" else values, labels)
        for _ in range(12):
            assert training.step()
        assert journal.counts["overlay.set_aside"] == 1
        assert journal.counts["overlay.refused"] == 1
        assert disk.version("d4", 0) is None
        assert all(disk.version(device, 0) for device in DEVICES[:4])
        cache.close()


def test_the_head_of_a_run_comes_before_or_after_its_state_and_another_models_is_refused(edge):
    weights = split_network.weights(split_network.network(MODEL, 3).head)
    list(edge.handle(GlobalHead("next", 1, weights), 0.0))
    assert edge._filter.head is None
    list(edge.handle(RunState("next", 1, 9, "training"), 0.0))
    found = split_network.weights(edge._filter.head)
    assert all((found[name] == weights[name]).all() for name in weights)
    with pytest.raises(WireError, match="head"):
        list(edge.handle(GlobalHead("next", 2, {"w": np.ones(3, np.float32)}), 0.0))


def test_the_cloud_says_the_head_to_its_edges_every_round(tmp_path):
    fleet = Fleet(tmp_path, rounds=3).run()
    assert fleet.cloud.done
    heads = [edge._heard for edge in fleet.edges.values()]
    assert [each.round for each in heads] == [4, 4]
    final = {n.removeprefix("head."): a for n, a in fleet.cloud.state.weights.items() if n.startswith("head.")}
    assert all((heads[0].weights[name] == final[name]).all() for name in final)
    fleet.close()
