"""Nodes that do not agree on what they learn do not learn together: the cloud says who differs, and in what."""

import dataclasses
import json
import logging
import re
import unicodedata

import numpy as np
import pytest
from fleet import MODEL, dataset
from telling import events, sent

from cloud_app.rounds.node import CloudNode
from cloud_app.rounds.state import begin
from device_app.node import DeviceNode
from edge_app.cache.replay_cache import ReplayCache
from edge_app.node import EdgeNode
from emo.config import CloudConfig, DeviceConfig, EdgeConfig, Model
from emo.journal import Journal
from emo.models import split_network
from emo.runtime import agreement
from emo.wire import frame
from emo.wire.messages import (
    GlobalHead,
    GlobalModel,
    OverlayWeights,
    Refused,
    RunState,
    Status,
    Unfit,
    Update,
)

DATA = dataset()


def cloud(folder=None, edges=("e",), data=DATA):
    settings = {"min_devices": 1, "rounds": 2, "deadline_s": 10}
    said = {"model": MODEL, "rounds": settings, "overlays": {"edges": edges, "start_s": 0, "wait_s": 100}}
    start = split_network.weights(split_network.network(MODEL, 1))
    overlay = split_network.weights(split_network.overlay(MODEL, 0))
    facts = agreement.facts(MODEL, split_network.split_shape(MODEL), data, network=start, overlay=overlay)
    config = CloudConfig.model_validate(said)
    return CloudNode(config, begin(config, "run", start), Journal(folder), facts=facts)


def device(name="d", model=MODEL, folder=None, **changes):
    config = DeviceConfig.model_validate({"id": name, "edge": "e", "model": model})
    node = DeviceNode(config, dataclasses.replace(DATA, **changes), Journal(folder))
    node.prepare()
    return node


def edge(disk, model=MODEL, **more):
    config = EdgeConfig.model_validate({"id": "e", "devices": ["d"], "model": model} | more)
    node = EdgeNode(config, ReplayCache(disk, 1 << 20, 0), Journal())
    node.prepare()
    return node


DIFFERENT = {
    "the case of a name": ({"classes": ("A", "b", "c", "d")}, MODEL, 'classes is ["A", "b", "c", "d"] there'),
    "the order of names": ({"classes": tuple("bacd")}, MODEL, 'and ["a", "b", "c", "d"] at the cloud'),
    "the mean": ({"mean": np.float32([63])}, MODEL, "mean is 63.0 there and 64.0 at the cloud"),
    "the std": ({"std": np.float32([1])}, MODEL, "std is 1.0 there and 64.0 at the cloud"),
    "the width": ({}, MODEL.model_copy(update={"width": 1.0}), "width 1, norm group there"),
    "the norm": ({}, MODEL.model_copy(update={"norm": "batch"}), "norm batch there and .*norm group at"),
    "the network": (
        {},
        MODEL.model_copy(update={"name": "vgg6", "width": 0.125}),
        "split is .* at the cloud",
    ),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_device_that_differs_takes_no_part_and_both_sides_say_in_what(tmp_path, caplog, what):
    changes, model, sentence = DIFFERENT[what]
    here = cloud(tmp_path / "cloud")
    odd = device("odd", model, tmp_path / "device", **changes)
    (unfit,) = sent(here, odd.hello(online=True))
    assert (type(unfit), unfit.member) == (Unfit, "odd")
    (model_of_round,) = [m for m in sent(here, device().hello(online=True)) if isinstance(m, GlobalModel)]
    assert model_of_round.devices == ("d",)
    sent(odd, unfit)
    sent(odd, unfit)
    (there,), (told,) = events(tmp_path / "device", "unfit"), events(tmp_path / "cloud", "unfit")
    assert told["node"] == "odd"
    for text in (unfit.reason, there["why"], told["why"], odd.trouble.why, here.about()["out"]["odd"]):
        assert re.search(sentence.replace("[", r"\["), text)
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len([line for line in lines if unfit.reason in line]) == 2  # one of each side


def test_nodes_that_agree_are_not_bothered(disk):
    here = cloud()
    nfd = [unicodedata.normalize("NFD", name) for name in ("é", "b", "c", "d")]
    nfc = [unicodedata.normalize("NFC", name) for name in nfd]
    assert nfd != nfc
    french = cloud(data=dataclasses.replace(DATA, classes=tuple(nfc)))
    assert [type(m) for m in sent(french, device(classes=tuple(nfd)).hello(online=True))] == [
        RunState,
        GlobalHead,
        GlobalModel,
    ]
    assert sent(here, edge(disk).hello(online=True)) == []
    older = Status("older", "device", online=True, samples=5)  # says nothing of itself
    assert any(isinstance(m, GlobalModel) for m in sent(here, older))
    assert here.about()["out"] == {}


def test_who_is_mended_takes_part_again():
    here = cloud()
    assert sent(here, device(mean=np.float32([63])).hello(online=True))
    assert here.about()["devices"] == 0
    assert any(isinstance(m, GlobalModel) for m in sent(here, device().hello(online=True)))
    assert here.about()["out"] == {}
    # Another configuration in the middle of a round: what it trained by then does not count.
    sent(here, device(mean=np.float32([63])).hello(online=True))
    late = Update("run", "d", 1, 4, 0.5, here.state.weights)
    (refused,) = sent(here, late, 1.0)
    assert isinstance(refused, Refused)
    assert "mean is 63.0" in refused.reason


def test_an_edge_that_differs_is_not_waited_for_and_its_overlay_is_not_taken(disk, caplog):
    here = cloud()
    odd = edge(disk, MODEL.model_copy(update={"width": 1.0}))
    (unfit,) = sent(here, odd.hello(online=True))
    assert "width 1" in unfit.reason
    sent(odd, unfit)
    assert "width 1" in odd.trouble.why
    sent(here, device().hello(online=True))
    for number in (1, 2):
        sent(here, Update("run", "d", number, 4, 0.5, here.state.weights), number)
    list(here.tick(3.0))
    assert here.state.phase == "done"
    sent(here, OverlayWeights("run", "e", 5, 1, 1, {}), 4.0)
    assert here.state.overlays == {}
    assert "going on without the overlays of e (model is" in caplog.text


def test_what_a_node_says_of_itself_fits_into_one_packet_whatever_its_data():
    model = Model(input=(512, 4, 4), classes=2000)
    names = tuple(f"{chr(0x1F600 + k % 40)} a long name of class {k}" for k in range(2000))
    many = np.linspace(1, 1000, 512, dtype=np.float32)
    wide = dataclasses.replace(DATA, images=np.zeros((96, 512, 4, 4), np.uint8), classes=names, mean=many, std=many)
    facts = agreement.facts(model, (64, 4, 4), wide, network={"w": many}, overlay={"w": many})
    assert "2000 names, sha256" in facts["classes"]
    status = Status("d" * 64, "device", True, 2**53 - 1, facts)
    assert len(list(frame.split(status, bytes(8), 4 << 10, 4 << 10))) == 1
    other = dataclasses.replace(wide, classes=(*names[:-1], "x"))
    theirs = agreement.facts(model, (64, 4, 4), other, network={"w": many}, overlay={"w": many})
    assert "classes is ...2000 names" not in agreement.differences(facts, theirs)
    assert "classes is" in agreement.differences(facts, theirs)


def test_the_difference_is_shown_where_it_is():
    names = [f"class-{k}" for k in range(100)]
    (theirs, ours) = ({"classes": json.dumps([*names[:90], odd, *names[91:]])} for odd in ("Bee", "bee"))
    said = agreement.differences(ours, theirs)
    assert '"Bee"' in said
    assert '"bee"' in said
    assert len(said) <= 450


def test_facts_of_others_are_only_text():
    facts = {"mean": "\x1b[31m" + "9" * 1400, "classes": "\n" * 1000, "unheard of": "x"}
    said = agreement.differences({"mean": "1", "classes": "[]", "std": "2"}, facts)
    assert said.isprintable()
    assert len(said) <= 450
    assert "unheard" not in said


def test_older_bytes_of_a_status_still_count():
    old = b'["device-1","device",true,500]'
    payload = len(old).to_bytes(4, "little") + old
    status = Status("device-1", "device", online=True, samples=500)
    assert frame.unpack(0, payload) == status
    assert frame.pack(status) == payload
