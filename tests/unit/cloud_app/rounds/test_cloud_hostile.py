"""Rounds with devices that lie, attack or repeat what is over; and a cloud that starts anew in the middle of one."""

import dataclasses

import numpy as np
import pytest
from fleet import MODEL, dataset

from cloud_app.ensemble.model import misfit
from cloud_app.ensemble.run_archive import Edge
from cloud_app.rounds.node import CloudNode, Host
from cloud_app.rounds.state import begin
from device_app.node import DeviceNode
from emo.config import CloudConfig, DeviceConfig, Training
from emo.errors import ConfigError
from emo.journal import Journal
from emo.models import split_network
from emo.wire.messages import GlobalModel, OverlayWeights, Refused, Status, Update

START = {"w": np.ones((4, 25), np.float32)}  # its norm is ten
NAMES = tuple("abcdefghi")


def cloud(folder=None, samples=4, state=None, opened=True, **rounds):
    values = {"rounds": 2, "min_devices": len(NAMES), "deadline_s": 10, "give_up_s": 100} | rounds
    said = {"model": MODEL, "rounds": values, "overlays": {"edges": ["e"], "wait_s": 5, "start_s": 0}}
    config = CloudConfig.model_validate(said)
    node = CloudNode(config, state or begin(config, "run", START), Journal(), Host(folder=folder))
    if opened and state is None:
        for name in NAMES:
            list(node.handle(Status(name, "device", online=True, samples=samples), 0))
        assert node.state.phase == "collecting"
    return node


def update(device, step=0.1, samples=4, loss=0.5, **changes):
    made = Update("run", device, 1, samples, loss, {"w": START["w"] + np.float32(step)})
    return dataclasses.replace(made, **changes)


def send(node, *updates, now=1):
    return [m for each in updates for m in node.handle(each, now) if isinstance(m, Refused)]


@pytest.mark.parametrize("aggregate", ["median", "trimmed-mean", "multi-krum"])
def test_two_that_attack_change_nothing(aggregate):
    honest = [update(name) for name in NAMES[2:]]
    for step in (-1.0, 5.0):
        node = cloud(aggregate=aggregate)
        send(node, *honest, *(update(name, step, samples=2**20) for name in NAMES[:2]))
        assert node.state.round == 2
        np.testing.assert_allclose(node.state.weights["w"], 1.1, rtol=1e-6)
        assert node._journal.counts["updates.outvoted"] == (4 if aggregate == "multi-krum" else 0)


@pytest.mark.parametrize("announced", [4, 2**20])
def test_who_lies_about_its_samples_counts_for_two_shares_at_most(announced):
    node = cloud(opened=False)
    for name in NAMES:
        samples = announced if name == "a" else 4
        list(node.handle(Status(name, "device", online=True, samples=samples), 0))
    send(node, update("a", 1.0, samples=2**20), *(update(name, 0.0) for name in NAMES[1:]))
    assert node.state.round == 2
    assert 1 + 1 / 9 < node.state.weights["w"][0, 0] <= 1 + 2 / 9
    assert node._journal.counts["updates.capped"] == 1


def test_what_is_clipped_is_counted():
    node = cloud(clip_norm=1.01)
    send(node, *(update(name, 0.5 if name < "c" else 0.1) for name in NAMES))
    np.testing.assert_allclose(node.state.weights["w"], 1.1, rtol=0.01)  # 0.1 is a norm of one
    assert node._journal.counts["updates.clipped"] == 2


@pytest.mark.parametrize(("changes", "reason"), [({"step": 11.0}, "max_norm"), ({"loss": 1e300}, "training loss")])
def test_what_goes_too_far_is_refused_and_told(changes, reason):
    node = cloud()
    (answer,) = send(node, update("a", **changes))
    assert reason in answer.reason
    assert node._journal.counts["updates.refused"] == 1
    assert send(node, *(update(name) for name in NAMES[1:])) == []
    list(node.tick(20))
    assert node.state.round == 2  # without it


@pytest.mark.parametrize(("aggregate", "asked"), [("median", 9), ("multi-krum", 9), ("mean", 5)])
def test_a_cloud_that_starts_anew_in_a_round_gives_the_same_bits(aggregate, asked, tmp_path):
    sent = [update(name, 0.01 * place, 4 + 100 * place) for place, name in enumerate(NAMES)]
    whole = cloud(aggregate=aggregate)
    send(whole, *sent)

    first = cloud(tmp_path, aggregate=aggregate)
    send(first, *sent[:4])
    assert (first.state.sum is None) == (aggregate != "mean")
    second = cloud(tmp_path, state=first.state, aggregate=aggregate)
    (model,) = (m for m in second.tick(2) if isinstance(m, GlobalModel))
    assert len(model.devices) == asked
    send(second, *(each for each in reversed(sent) if each.device in model.devices))
    assert second.state.round == 2
    assert second.state.weights["w"].tobytes() == whole.state.weights["w"].tobytes()


def test_updates_that_would_not_fit_the_disk_are_refused_at_the_start(tmp_path):
    with pytest.raises(ConfigError, match=r"rounds\.aggregate.*MiB left"):
        cloud(tmp_path, opened=False, aggregate="median", min_devices=10**15)


OVERLAY = split_network.weights(split_network.overlay(MODEL, 0))
FIRST = next(iter(OVERLAY))


def changed(array):
    return {**OVERLAY, FIRST: array}


BAD_OVERLAYS = {
    "nan": changed(np.full_like(OVERLAY[FIRST], np.nan)),
    "huge": changed(np.full_like(OVERLAY[FIRST], 3e38)),
    "shape": changed(OVERLAY[FIRST][:1]),
    "dtype": changed(OVERLAY[FIRST].astype(np.float64)),
    "missing": {name: array for name, array in OVERLAY.items() if name != FIRST},
    "more": {**OVERLAY, "other": np.zeros(3, np.float32)},
    "none": {},
}


def overlay(weights=OVERLAY, steps=5, attempted=3, sent=2):
    return OverlayWeights("run", "e", steps, attempted, sent, weights)


BAD = [(name, overlay(weights)) for name, weights in BAD_OVERLAYS.items()]
BAD += [(name, overlay(**{name: 2**53 - 1})) for name in ("steps", "attempted", "sent")]


@pytest.mark.parametrize(("_name", "bad"), BAD, ids=[name for name, _ in BAD])
def test_an_overlay_that_cannot_be_is_left_out_and_not_waited_for(_name, bad, caplog):
    node = cloud(rounds=1)
    send(node, *(update(name) for name in NAMES))
    assert node.state.phase == "overlays"
    list(node.handle(bad, 2))
    assert node.done
    assert node.state.overlays == {}
    assert node._journal.counts["overlays.refused"] == 1
    assert "overlay of e: " in caplog.text
    assert "left out" in caplog.text
    # A version that took it has written it down: the next process leaves it out too.
    node.state.overlays["e"] = Edge(steps=bad.steps, attempted=bad.attempted, sent=bad.sent)
    node.state.overlay_weights["e"] = bad.weights
    again = cloud(rounds=1, state=node.state)
    assert again.state.overlays == {}
    assert again._journal.counts["overlays.refused"] == 1


def test_an_overlay_with_a_mask_of_infinity_is_taken():
    like = {"mask": np.array([0, -np.inf], np.float32), "w": np.zeros(2, np.float32)}
    assert misfit(like, like) == ""
    assert "mask" in misfit(like, {**like, "mask": np.array([-np.inf, 0], np.float32)})


def test_a_device_does_not_go_back_to_a_run_that_it_has_left():
    journal = Journal()
    node = DeviceNode(DeviceConfig(id="d", model=MODEL), dataset(), journal)
    weights = split_network.weights(split_network.network(MODEL, 0))
    for run, wanted in (("old", 1), ("new", 1), ("old", 0), ("new", 1)):
        model = GlobalModel(run, 1, ("d",), Training(), weights)
        found = [m.run for m in node.handle(model, 0) if isinstance(m, Update)]
        assert found == [run] * wanted
    assert journal.counts["globals.old"] == 1
