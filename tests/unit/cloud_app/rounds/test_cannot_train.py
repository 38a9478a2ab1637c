"""A device or an edge that cannot train says so, everybody hears why, and nobody waits for it."""

import numpy as np
import pytest
import torch
from clouds import cloud, opened, update
from fleet import MODEL, Fleet, dataset
from telling import events, sent
from torch import nn
from updates import LIKE, rounds, updates

import device_app.ready
import edge_app.ready
from cloud_app.rounds.node import CloudNode
from cloud_app.rounds.round import Round
from cloud_app.rounds.state import Opened, begin
from device_app.node import DeviceNode
from edge_app.cache.replay_cache import ReplayCache
from edge_app.node import EdgeNode
from emo.config import CloudConfig, DeviceConfig, EdgeConfig, Training
from emo.errors import ModelError, QuorumError
from emo.journal import Journal
from emo.models import split_network
from emo.models.layers import Parts
from emo.runtime import heartbeat
from emo.runtime.heartbeat import HeartbeatWriter
from emo.wire.codec import Packed
from emo.wire.messages import (
    ActivationBatch,
    CannotTrain,
    GlobalModel,
    OverlayWeights,
    RunState,
    Status,
    TapReport,
    Update,
)

pytestmark = pytest.mark.usefixtures("one_thread")

FAILS: set[str] = set()  # the parts that raise for now


class Moody(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        if self.training and self.part in FAILS:
            raise ValueError(f"the {self.part} is in a mood\x1b[31m")
        return x


def moody(spec):
    return Parts(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), Moody("trunk")),
        lambda: nn.Linear(8, spec.classes),
        lambda: nn.Sequential(Moody("overlay"), nn.Linear(8, spec.classes)),
    )


def batch_norm(spec):
    return Parts(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8)),
        lambda: nn.Linear(8, spec.classes),
        lambda: nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, spec.classes)),
    )


def dropout(spec):
    return Parts(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.3)),
        lambda: nn.Linear(8, spec.classes),
        lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(8, spec.classes)),
    )


def bfloat(spec):
    """Answers in a dtype that no wire has."""

    class Cast(nn.Module):
        def forward(self, x):
            return x.to(torch.bfloat16)

    class Back(nn.Module):
        def forward(self, x):
            return x.to(torch.float32)

    return Parts(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Cast()),
        lambda: nn.Sequential(Back(), nn.Linear(8, spec.classes)),
        lambda: nn.Sequential(Back(), nn.Linear(8, spec.classes)),
    )


def named(name):
    return MODEL.model_copy(update={"name": f"{__name__}:{name}"})


@pytest.fixture(autouse=True)
def _well():
    FAILS.clear()
    yield
    FAILS.clear()


def device(name="d", samples=96, net="moody", journal=None, prepare=True):
    config = DeviceConfig.model_validate({"id": name, "edge": "e", "model": named(net)})
    node = DeviceNode(config, dataset(samples), journal or Journal())
    if prepare:
        node.prepare()
    return node


# -- before anything connects


@pytest.mark.parametrize(
    ("net", "samples", "why"),
    [
        (
            "batch_norm",
            17,
            "smallest batch (1 of 17 samples, batch_size 16): ValueError: Expected more than 1 value",
        ),
        (
            "bfloat",
            96,
            "smallest batch (16 of 96 samples, batch_size 16): TypeError: Got unsupported ScalarType BFloat16",
        ),
    ],
)
def test_what_fails_at_the_first_step_is_found_before_it(tmp_path, caplog, net, samples, why):
    node = device(samples=samples, net=net, journal=Journal(tmp_path / "device"))
    assert why in node.trouble.why
    assert why in events(tmp_path / "device", "cannot_train")[0]["why"]
    status = node.hello(online=True)
    assert why in status.trouble
    assert node.hello(online=False).trouble == ""
    config = {"model": MODEL, "rounds": {"min_devices": 2, "give_up_s": 5}, "overlays": {"start_s": 0}}
    config = CloudConfig.model_validate(config)
    start = {"w": np.zeros(2, np.float32)}
    here = CloudNode(config, begin(config, "run", start), Journal(tmp_path / "cloud"))
    assert sent(here, status) == []  # it knows
    assert sent(here, status) == []
    sent(here, Status("well", "device", online=True, samples=4))
    assert why in here.about()["out"]["d"]
    (told,) = events(tmp_path / "cloud", "cannot_train")
    assert (told["node"], why in told["why"]) == ("d", True)
    with pytest.raises(QuorumError, match=r"1 of 2 devices are here \(well\); left out: d \(a trial step"):
        list(here.tick(6.0))
    assert sum(why in record.getMessage() for record in caplog.records) == 2  # a line of the device, one of the cloud


def test_health_says_that_a_node_cannot_train(tmp_path):
    node = device(samples=17, net="batch_norm")
    HeartbeatWriter(tmp_path, "device", "d", dict, trouble=lambda: node.trouble.why).beat()
    assert heartbeat.read(tmp_path).wrong(30.0).startswith("cannot train: a trial step")
    well = device(samples=32, net="batch_norm")
    HeartbeatWriter(tmp_path, "device", "d", dict, trouble=lambda: well.trouble.why).beat()
    assert heartbeat.read(tmp_path).wrong(30.0) == ""


def test_the_trial_changes_no_bit(tmp_path, disk):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    device(net="dropout")
    edge = EdgeNode(edge_config("dropout"), ReplayCache(disk, 1 << 20, 0), Journal())
    overlay = {name: array.tobytes() for name, array in edge.overlay().items()}
    edge.prepare()
    assert edge.trouble.why == ""
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: array.tobytes() for name, array in edge.overlay().items()} == overlay
    runs = []
    for prepare in (True, False):
        torch.manual_seed(3)
        fleet = Fleet(tmp_path / str(prepare), rounds=2, model=named("dropout"), prepare=prepare)
        runs.append([{n: a.tobytes() for n, a in each.items()} for each in fleet.run().globals])
        overlays = fleet.cloud.state.overlay_weights.values()
        runs[-1] += [{n: a.tobytes() for n, a in each.items()} for each in overlays]
        fleet.close()
    assert runs[0] == runs[1]
    assert len(runs[0]) == 5


# -- in a round


def asked(*devices, number=1, net="moody"):
    return GlobalModel("run", number, devices, Training(), split_network.weights(split_network.network(named(net), 0)))


def test_a_device_says_that_its_training_failed_and_trains_the_next_round(tmp_path, caplog):
    node = device(journal=Journal(tmp_path))
    FAILS.add("trunk")
    for _ in range(2):
        (told,) = sent(node, asked("d"))
        assert (told.run, told.node, told.round) == ("run", "d", 1)
        assert told.reason == "round 1: ValueError: the trunk is in a mood?[31m"
    assert "in a mood" in node.trouble.why
    assert len(events(tmp_path, "cannot_train")) == 1
    (record,) = [each for each in caplog.records if "in a mood" in each.getMessage()]
    assert record.exc_info is not None  # whoever wrote the network wants to see where
    FAILS.clear()
    assert isinstance(sent(node, asked("d", number=2))[-1], Update)
    assert node.trouble.why == ""


def test_a_global_model_that_does_not_fit_is_answered(caplog):
    (told,) = sent(device(), asked("d", net="batch_norm"))
    assert "ModelError: weights do not fit" in told.reason
    assert all(record.exc_info is None for record in caplog.records)


def cannot(node, number=1, reason="why"):
    return CannotTrain("run", node, number, reason)


def test_a_round_does_not_wait_for_who_cannot_train_and_asks_him_again(tmp_path):
    node = cloud(min_devices=2, rounds=3, start_s=5)
    node._journal = node._report._journal = Journal(tmp_path)
    opened(node, ("a", "b", "c"))
    sent(node, Status("e", "edge", online=True))
    sent(node, update("a"), 1)
    sent(node, cannot("c", reason="ValueError: \x1b"), 1)
    sent(node, cannot("c"), 1)
    assert node.state.round == 1
    (model,) = [m for m in sent(node, update("b"), 2) if isinstance(m, GlobalModel)]
    assert (model.round, model.devices) == (2, ("a", "b", "c"))
    (line,) = events(tmp_path, "round")
    assert line["left_out"] == {"c": "cannot-train"}
    assert [(e["node"], e["round"], e["why"]) for e in events(tmp_path, "cannot_train")] == [("c", 1, "ValueError: ?")]
    sent(node, cannot("c", 2), 3)
    sent(node, update("c", round=2), 3)  # after a restart, say
    assert node.state.opened.heard == {"c": 4}
    assert node._open.cannot == {}


def test_too_few_that_can_train_are_named_with_the_reason():
    node = cloud(min_devices=3)
    opened(node, ("a", "b", "c"))
    sent(node, update("a"), 1)
    for name in ("b", "c"):
        sent(node, cannot(name, reason=f"{name} has no memory"), 1)
    assert node.state.round == 1  # one of three makes no model
    assert node.about()["out"] == {"b": "b has no memory", "c": "c has no memory"}
    with pytest.raises(QuorumError, match=r"1 of 3 .* missing: nobody; cannot train: b \(b has no memory\), c"):
        list(node.tick(101))


@pytest.mark.parametrize("message", [cannot("z"), cannot("a", 7), CannotTrain("other", "a", 1, "why")])
def test_who_was_not_asked_is_not_heard(tmp_path, message):
    node = cloud()
    node._journal = Journal(tmp_path)
    opened(node, ("a", "b"))
    for _ in range(100):
        sent(node, message, 1)
    assert events(tmp_path, "cannot_train") == []
    assert node._open.cannot == {}


@pytest.mark.parametrize(("aggregate", "least"), [("mean", 6), ("median", 6), ("trimmed-mean", 7), ("multi-krum", 9)])
def test_a_round_never_closes_with_fewer_updates_than_its_rule_needs(aggregate, least):
    names = [f"d{k:02}" for k in range(12)]
    config = CloudConfig(rounds=rounds(aggregate, min_devices=max(6, least), quorum=1.0))
    for silent in range(13):
        this = Round(config, begin(config, "run", LIKE), Opened(sampled=names), None)
        this.cannot = dict.fromkeys(names[:silent], "why")
        for name, weights in zip(names[silent:], updates(12).values(), strict=False):
            assert not this.enough()
            this.add(Update("run", name, 1, 4, 0.5, weights))
        assert this.enough() == (12 - silent >= max(6, least))
        if this.enough():
            assert this.close([], 1.0)[1].left_out == dict.fromkeys(names[:silent], "cannot-train")


# -- an edge


def edge_config(net="moody", **overlay):
    return EdgeConfig.model_validate(
        {"id": "e", "devices": ["d"], "model": named(net), "overlay": {"patience_s": 0.5} | overlay}
    )


@pytest.fixture
def edge(disk, tmp_path):
    node = EdgeNode(edge_config(), ReplayCache(disk, 1 << 20, 0), Journal(tmp_path / "journal"))
    node.prepare()
    sent(node, RunState("run", 1, 3, "training"))
    for number in range(4):
        values = np.random.default_rng(number).random((16, 8), np.float32)
        labels = np.arange(16, dtype="<i4") % 4
        sent(node, ActivationBatch("run", "e", "d", number, 1, Packed(values, "fp32"), labels))
    sent(node, TapReport("run", "e", "d", 1, 40, 4))
    return node


def works(node, seconds, start=0.0):
    """What comes of being called 20 times a second."""
    return [m for tick in range(int(20 * seconds)) for m in node.work(start + tick / 20)]


def test_an_edge_whose_overlay_raises_says_it_once_and_gives_up_until_the_next_run(edge, tmp_path, caplog):
    FAILS.add("overlay")
    told = works(edge, 60)
    assert [type(m) for m in told] == [CannotTrain] * 10  # one try a second, and then no more
    assert told[0] == CannotTrain("run", "e", 1, "an overlay step: ValueError: the overlay is in a mood?[31m")
    assert edge._journal.counts["overlay.failed"] == 10
    assert "in a mood" in edge.trouble.why
    assert len(events(tmp_path / "journal", "cannot_train")) == 1
    assert len([each for each in caplog.records if each.exc_info]) == 1
    sent(edge, RunState("run", 3, 3, "finishing"), 60)
    (overlay,) = works(edge, 2, 61)
    assert (type(overlay), overlay.steps) == (OverlayWeights, 0)
    FAILS.clear()
    sent(edge, RunState("next", 1, 3, "training"), 70)
    labels = np.arange(16, dtype="<i4") % 4
    batch = Packed(np.ones((16, 8), np.float32), "fp32")
    sent(edge, ActivationBatch("next", "e", "d", 0, 1, batch, labels), 70)
    assert None in works(edge, 1, 71)
    assert edge.trouble.why == ""


def test_an_edge_whose_step_failed_now_and_then_goes_on(edge):
    assert works(edge, 0.1)[:1] == [None]
    FAILS.add("overlay")
    assert len(works(edge, 3, 1)) == 3
    FAILS.clear()
    assert None in works(edge, 1, 5)
    assert edge.trouble.why == ""


def test_an_edge_whose_overlay_cannot_train_at_all_trains_nothing_and_says_so(disk, caplog):
    FAILS.add("overlay")
    node = EdgeNode(edge_config(), ReplayCache(disk, 1 << 20, 0), Journal())
    node.prepare()
    status = node.hello(online=True)
    assert "a trial step of the overlay: ValueError: the overlay is in a mood" in status.trouble
    sent(node, RunState("run", 1, 3, "training"))
    sent(node, TapReport("run", "e", "d", 1, 40, 4))
    assert works(node, 5) == []
    here = cloud(rounds=1)
    sent(here, status)
    opened(here, ("a", "b"))
    sent(here, update("a"), 1)
    sent(here, update("b"), 1)
    list(here.tick(2))
    assert here.state.phase == "done"  # it is not waited for
    assert "going on without the overlays of e (a trial step" in caplog.text


def test_the_cloud_says_why_an_edge_sends_an_untrained_overlay(tmp_path, caplog):
    node = cloud(rounds=1)
    node._journal = node._overlays._journal = Journal(tmp_path)
    opened(node, ("a", "b"))
    for reason in ("in a mood", "in another"):
        sent(node, cannot("e", reason=reason), 1)
    sent(node, update("a"), 1)
    sent(node, update("b"), 1)
    sent(node, OverlayWeights("run", "e", 0, 0, 0, {}), 2)
    assert node.state.phase == "done"
    assert [event["why"] for event in events(tmp_path, "cannot_train")] == ["in a mood"]
    assert "e: its overlay is left out: in a mood" in caplog.text


def test_the_smallest_batch_is_the_last():
    node = device(samples=33, net="batch_norm")
    assert "(1 of 33 samples" in node.trouble.why
    assert device(samples=34, net="batch_norm").hello(online=True).trouble == ""


def test_doctor_tries_the_same_steps():
    model = named("moody").model_copy(update={"classes": 10})
    FAILS.add("overlay")
    with pytest.raises(ValueError, match="the overlay is in a mood"):
        edge_app.ready.described(EdgeConfig(id="e", devices=("d",), model=model))
    FAILS.add("trunk")
    with pytest.raises(ModelError, match=r"cannot train: a trial step .* the trunk is in a mood"):
        device_app.ready.described(DeviceConfig(id="d", model=model))
