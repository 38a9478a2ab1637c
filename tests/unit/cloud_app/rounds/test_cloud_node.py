"""The cloud's rounds: what closes one, who is refused, what does not depend on the order of arrival."""

import dataclasses

import numpy as np
import pytest
from clouds import cloud, opened, update
from fleet import MODEL

from cloud_app.rounds.node import CloudNode
from cloud_app.rounds.state import begin
from emo.config import CloudConfig
from emo.errors import QuorumError
from emo.journal import Journal
from emo.wire.compression import shrink
from emo.wire.messages import GlobalModel, OverlayWeights, Refused, RunState, Status


def shrunk(device, form, matrix):
    """An update in `form` of a model whose only tensor is the (2, 3) matrix `w`."""
    base = {"w": np.zeros(matrix.shape, np.float32)}
    arrays = shrink({"w": matrix.astype(np.float32)}, form, base)
    return dataclasses.replace(update(device, **arrays), form=form)


def test_the_same_bits_whatever_order_updates_arrive_in():
    results = []
    for order in (("a", "b", "c"), ("c", "a", "b"), ("b", "c", "a")):
        node = cloud(min_devices=3)
        opened(node, ("a", "b", "c"))
        for name in order:
            list(node.handle(update(name, value=0.1 + ord(name) / 70, samples=ord(name)), 1))
        assert node.state.round == 2
        results.append(node.state.weights["w"].tobytes())
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
    assert not node.state.opened.heard


@pytest.mark.parametrize("form", ["fp16", "delta-fp16", "delta-int8"])
@pytest.mark.parametrize(
    ("matrix", "reason"),
    [
        (np.full((2, 3), np.nan), "NaN"),
        (np.full((2, 3), np.inf), "infinity"),
        (np.full((2, 3), 1e10), "65536 or more"),
        (np.zeros((3, 2)), "expected float32"),
        (np.zeros((1, 2, 3)), "expected float32"),
    ],
)
def test_a_bad_update_is_refused_in_every_form(form, matrix, reason):
    node = cloud()
    node.state.weights = {"w": np.zeros((2, 3), np.float32)}
    opened(node, ("a", "b"))
    (out,) = [m for m in node.handle(shrunk("a", form, matrix), 1) if m]
    assert reason in out.reason
    assert node._journal.counts["updates.refused"] == 1
    assert not node.state.opened.heard
    assert [m for m in node.handle(shrunk("a", form, np.ones((2, 3))), 1) if m] == []  # and goes on
    assert node.state.opened.heard == {"a": 4}


@pytest.mark.parametrize("data", [b"junk" * 10, b""])
def test_an_update_whose_bytes_are_damaged_is_refused(data):
    node = cloud()
    node.state.weights = {"w": np.zeros((2, 3), np.float32)}
    opened(node, ("a", "b"))
    bad = dataclasses.replace(shrunk("a", "fp16", np.ones((2, 3))), weights={"w": np.frombuffer(data, "u1")})
    (out,) = [m for m in node.handle(bad, 1) if m]
    assert isinstance(out, Refused)
    assert out.reason.startswith("w: ")


def test_a_doubled_update_is_counted_once():
    node = cloud(min_devices=3)
    opened(node, ("a", "b", "c"))
    for _ in range(3):
        assert [m for m in node.handle(update("a"), 1) if m] == []
    assert node.state.sum.updates == 1
    assert node._journal.counts["updates.duplicate"] == 2


def test_quorum_and_deadline():
    node = cloud(min_devices=4, quorum=0.5)
    assert opened(node)[0].devices == ("a", "b", "c", "d")
    list(node.handle(update("a"), 1))
    list(node.handle(update("b"), 2))
    assert node.state.round == 1  # two are still at it
    list(node.tick(9))
    assert node.state.round == 1
    list(node.tick(11))
    assert node.state.round == 2
    late = [m for m in node.handle(update("c"), 12) if isinstance(m, Refused)]
    assert len(late) == 1


def test_a_round_does_not_wait_for_devices_that_are_gone():
    node = cloud(min_devices=4, quorum=0.5)
    opened(node)
    for name in ("a", "b"):
        list(node.handle(update(name), 1))
    for name in ("c", "d"):
        list(node.handle(Status(name, "device", online=False), 2))
    assert node.state.phase == "waiting"  # closed; round 2 waits for its devices
    assert node.state.round == 2


def test_no_quorum_names_the_missing():
    node = cloud(min_devices=4)
    opened(node)
    list(node.handle(update("a"), 1))
    list(node.tick(50))
    with pytest.raises(QuorumError, match=r"1 of 4 updates.*missing: b, c, d"):
        list(node.tick(101))


def test_nobody_here_is_said_with_what_may_be_wrong():
    node = cloud(min_devices=3, give_up_s=30)
    list(node.tick(0))
    with pytest.raises(QuorumError, match=r"0 of 3 devices.*wan\.root\?.*wildcard.*emo doctor"):
        list(node.tick(31))


def test_too_few_devices_names_those_that_are_here():
    node = cloud(min_devices=3)
    opened(node, ("a", "b"))
    with pytest.raises(QuorumError, match=r"2 of 3 devices are here \(a, b\)"):
        list(node.tick(101))


def test_sampling_follows_the_seed():
    chosen = [opened(cloud(min_devices=8, per_round=3, seed=seed), "abcdefgh")[0].devices for seed in (1, 1, 2)]
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
    assert node.state.phase == "overlays"
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
    assert node.state.overlays == {}


def test_the_last_rounds_are_fresh_where_asked_for():
    config = CloudConfig.model_validate(
        {"model": MODEL, "rounds": {"rounds": 4}, "overlays": {"fresh_rounds": 2, "start_s": 0}}
    )
    node = CloudNode(config, begin(config, "run", {"w": np.zeros(2, np.float32)}), Journal())
    models = opened(node, "a")
    for number in (1, 2, 3, 4):
        models += [m for m in node.handle(update("a", round=number), number) if isinstance(m, GlobalModel)]
    assert [(m.round, m.fresh) for m in models if m.devices] == [(1, False), (2, False), (3, True), (4, True)]
