"""The three nodes together, without a broker: the promise that FL is left alone, and who refuses what."""

import dataclasses

import numpy as np
import pytest
import torch
from fleet import MODEL, Fleet, dataset

from cloud_app.node import CloudNode
from device_app.node import DeviceNode
from emo import models
from emo.codec import Packed
from emo.config import CloudConfig, DeviceConfig, Training
from emo.errors import DataError, QuorumError, WireError
from emo.journal import Journal
from emo.messages import ActivationBatch, GlobalModel, OverlayWeights, Refused, RunState, Status, Update


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fleet(tmp_path):
    made = []

    def make(name="fleet", **options):
        made.append(Fleet(tmp_path / name, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_global_models_are_bit_identical_with_the_tap_on_and_off(fleet):
    on, off = fleet("on").run(), fleet("off", tap=False).run()
    assert on.cloud.done
    assert off.cloud.done
    assert len(on.globals) == len(off.globals) == 4
    for with_tap, without in zip(on.globals, off.globals, strict=True):
        assert {name: array.tobytes() for name, array in with_tap.items()} == {
            name: array.tobytes() for name, array in without.items()
        }
    assert on.journals["edge-1"].counts["activations.stored"] > 0
    assert not any(off.journals[edge].counts["activations.stored"] for edge in off.edges)


def test_a_run_trains_overlays_and_counts_what_it_sends(fleet):
    done = fleet(rounds=4).run()
    assert sorted(done.cloud.overlays) == ["edge-1", "edge-2"]
    for overlay in done.cloud.overlays.values():
        assert overlay.attempted >= overlay.sent > 0
        assert overlay.steps * 4 >= 4.0 * overlay.attempted  # four batches a step, replay ratio 4
    attempted = sum(overlay.attempted for overlay in done.cloud.overlays.values())
    sent = sum(overlay.sent for overlay in done.cloud.overlays.values())
    assert sent < attempted  # intervals hold some back
    assert all(not journal.counts["bugs"] for journal in done.journals.values())


def test_a_repeated_global_model_is_answered_with_the_same_update():
    config = DeviceConfig(id="d", model=MODEL)
    node = DeviceNode(config, dataset(), Journal())
    message = GlobalModel("r", 1, ("d",), Training(), models.weights(models.network(MODEL, 0)))
    first = [m for m in node.handle(message, 0) if isinstance(m, Update)]
    again = list(node.handle(message, 1))
    assert again == first
    assert [m for m in node.handle(dataclasses.replace(message, round=2, devices=()), 2) if m] == []


def test_data_that_does_not_fit_the_model_is_refused():
    wrong = MODEL.model_copy(update={"input": (3, 8, 8)})
    with pytest.raises(DataError, match=r"model\.input"):
        DeviceNode(DeviceConfig(id="d", model=wrong), dataset(), Journal())


# -- the cloud


def cloud(start_s=0, **rounds) -> CloudNode:
    values = {"rounds": 2, "min_devices": 2, "deadline_s": 10, "give_up_s": 100} | rounds
    config = CloudConfig.model_validate(
        {"model": MODEL, "rounds": values, "overlays": {"edges": ["e"], "wait_s": 5, "start_s": start_s}}
    )
    return CloudNode(config, "run", {"w": np.zeros(2, np.float32)}, Journal())


def update(device, round=1, run="run", value=1.0, samples=4, **weights):
    arrays = weights or {"w": np.full(2, value, np.float32)}
    return Update(run, device, round, samples, 0.5, arrays)


def opened(node, devices=("a", "b", "c", "d"), now=0.0):
    out = []
    for name in devices:
        out += node.handle(Status(name, "device", online=True, samples=4), now)
    return [m for m in out if isinstance(m, GlobalModel)]


def test_the_same_bits_whatever_order_updates_arrive_in():
    results = []
    for order in (("a", "b", "c"), ("c", "a", "b"), ("b", "c", "a")):
        node = cloud(min_devices=3)
        opened(node, ("a", "b", "c"))
        for name in order:
            list(node.handle(update(name, value=0.1 + ord(name) / 7, samples=ord(name)), 1))
        assert node.round == 2
        results.append(node.weights["w"].tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (update("a", w=np.array([1, np.nan], np.float32)), "NaN"),
        (update("a", w=np.array([1, np.inf], np.float32)), "infinity"),
        (update("a", w=np.zeros(3, np.float32)), "expected float32"),
        (update("a", w=np.zeros(2, np.float64)), "expected float32"),
        (update("a", v=np.zeros(2, np.float32)), "do not match"),
        (update("a", round=2), "closed"),
        (update("a", run="other"), "closed"),
        (update("z"), "not asked"),
        (dataclasses.replace(update("a"), loss=None), "learning rate"),
    ],
)
def test_a_bad_update_is_refused_counted_and_told_to_the_device(message, reason):
    node = cloud()
    opened(node, ("a", "b"))
    out = [m for m in node.handle(message, 1) if m is not None]
    assert [type(m) for m in out] == [Refused]
    assert reason in out[0].reason
    assert out[0].device == message.device
    assert node._journal.counts["updates.refused"] == 1
    assert not node._heard


def test_a_doubled_update_is_counted_once():
    node = cloud(min_devices=3)
    opened(node, ("a", "b", "c"))
    for _ in range(3):
        assert [m for m in node.handle(update("a"), 1) if m] == []
    assert node._sum.updates == 1
    assert node._journal.counts["updates.duplicate"] == 2


def test_quorum_and_deadline():
    node = cloud(min_devices=4, quorum=0.5)
    assert opened(node)[0].devices == ("a", "b", "c", "d")
    list(node.handle(update("a"), 1))
    list(node.handle(update("b"), 2))
    assert node.round == 1  # two are still at it
    list(node.tick(9))
    assert node.round == 1
    list(node.tick(11))
    assert node.round == 2
    late = [m for m in node.handle(update("c"), 12) if isinstance(m, Refused)]
    assert len(late) == 1


def test_a_round_does_not_wait_for_devices_that_are_gone():
    node = cloud(min_devices=4, quorum=0.5)
    opened(node)
    for name in ("a", "b"):
        list(node.handle(update(name), 1))
    for name in ("c", "d"):
        list(node.handle(Status(name, "device", online=False), 2))
    assert node.phase == "waiting"  # closed; round 2 waits for its devices
    assert node.round == 2


def test_no_quorum_names_the_missing():
    node = cloud(min_devices=4)
    opened(node)
    list(node.handle(update("a"), 1))
    list(node.tick(50))
    with pytest.raises(QuorumError, match=r"1 of 4 updates.*missing: b, c, d"):
        list(node.tick(101))


def test_too_few_devices_names_those_that_are_here():
    node = cloud(min_devices=3)
    opened(node, ("a", "b"))
    with pytest.raises(QuorumError, match=r"2 of 3 devices are here \(a, b\)"):
        list(node.tick(101))


def test_sampling_follows_the_seed():
    chosen = [
        opened(cloud(min_devices=8, per_round=3, seed=seed), "abcdefgh")[0].devices for seed in (1, 1, 2)
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    assert all(len(each) == 3 for each in chosen)


def test_overlays_that_stay_away_do_not_hold_the_cloud():
    node = cloud(rounds=1)
    opened(node, ("a", "b"))
    list(node.handle(update("a"), 1))
    out = list(node.handle(update("b"), 1))
    assert [m.phase for m in out if isinstance(m, RunState)] == ["finishing"]
    list(node.handle(OverlayWeights("run", "stranger", 1, 1, 1, {}), 2))
    list(node.tick(3))
    assert node.phase == "overlays"
    list(node.tick(7))
    assert node.done
    assert node._journal.counts["overlays.missing"] == node._journal.counts["overlays.refused"] == 1


def test_the_first_round_waits_a_while_for_the_edges():
    node = cloud(start_s=10)
    assert opened(node, ("a", "b")) == []
    assert list(node.tick(5)) == []
    assert [m for m in node.handle(Status("e", "edge", online=True), 6) if isinstance(m, GlobalModel)]
    alone = cloud(start_s=10)
    opened(alone, ("a", "b"))
    assert [m for m in alone.tick(11) if isinstance(m, GlobalModel)]  # FL does not depend on them


def test_an_untrained_overlay_is_left_out_and_not_waited_for():
    node = cloud(rounds=1)
    opened(node, ("a", "b"))
    list(node.handle(update("a"), 1))
    list(node.handle(update("b"), 1))
    list(node.handle(OverlayWeights("run", "e", 0, 0, 0, {}), 2))
    assert node.done
    assert node.overlays == {}


# -- the edge


def batch(**changes):
    values = {
        "run": "run-1",
        "edge": "edge-1",
        "device": "device-0",
        "batch": 0,
        "version": 1,
        "activations": Packed(np.ones((2, *models.split_shape(MODEL)), np.float32), "fp16"),
        "labels": np.array([0, 3], "<i4"),
    }
    return ActivationBatch(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"device": "device-4"}, "devices are"),
        ({"run": "old"}, "of run old"),
        ({"labels": np.array([0, 4], "<i4")}, "labels must be"),
        ({"labels": np.array([0, -1], "<i4")}, "labels must be"),
        ({"labels": np.array([], "<i4")}, "labels must be"),
        ({"labels": np.array([0, 1, 2], "<i4")}, "same `model`"),
        ({"activations": Packed(np.ones((2, 1, 4, 4), np.float32))}, "same `model`"),
        ({"activations": Packed(np.ones((2, 900, 90, 9), np.float32))}, "limit"),
        ({"activations": Packed(np.full((2, *models.split_shape(MODEL)), np.nan, np.float32))}, "NaN"),
        ({"activations": Packed(b"junk" * 10)}, "checksum"),
    ],
)
def test_an_edge_refuses_what_does_not_belong_to_it(fleet, changes, text):
    node = fleet().edges["edge-1"]
    list(node.handle(RunState("run-1", 1, 3, "training"), 0))
    with pytest.raises(WireError, match=text):
        list(node.handle(batch(**changes), 0))
    assert [m.batch for m in node.handle(batch(), 0)] == [0]  # and goes on


def test_an_edge_stores_once_and_answers_with_intervals(fleet):
    node = fleet().edges["edge-1"]
    list(node.handle(RunState("run-1", 1, 3, "training"), 0))
    assert [m.interval for m in node.handle(batch(), 0)] == [1.0]  # new: s = 0
    assert list(node.handle(batch(), 0)) == []
    assert node._journal.counts["activations.duplicate"] == 1
    rng = np.random.default_rng(0)
    close = [Packed(rng.random((2, *models.split_shape(MODEL)), np.float32)) for _ in range(2)]
    list(node.handle(batch(version=2, activations=close[0]), 0))
    (answer,) = node.handle(batch(version=3, activations=close[0]), 0)
    assert answer.interval == 64  # nothing moved: the cap
    (answer,) = node.handle(batch(version=4, activations=close[1]), 0)
    assert answer.interval < 64


@pytest.mark.parametrize("stored", [True, False])
def test_an_edge_that_missed_the_run_still_answers(fleet, stored):
    made = fleet()
    node = made.edges["edge-1"]
    if stored:  # it was there before, and lost all but its disk
        list(node.handle(RunState("run-1", 1, 3, "training"), 0))
        list(node.handle(batch(), 0))
        node.__init__(node._config, node._cache, Journal())
    list(node.handle(RunState("run-1", 3, 3, "finishing"), 10))
    out = [m for _ in range(50) for m in node.work(20) if m]
    assert [type(m) for m in out] == [OverlayWeights]
    assert (out[0].steps > 0) is stored


def test_a_new_run_starts_with_an_empty_cache(fleet):
    node = fleet().edges["edge-1"]
    list(node.handle(RunState("run-1", 1, 3, "training"), 0))
    list(node.handle(batch(version=9), 0))
    list(node.handle(RunState("run-2", 1, 3, "training"), 0))
    assert list(node.work(0)) == []
    assert [m.interval for m in node.handle(batch(run="run-2", version=1), 0)] == [1.0]
