"""The judge that trains a run anew: it agrees with a true record, and with no other."""

import numpy as np
import pytest

from device_app.node import DeviceNode
from emo.config import CloudConfig, DeviceConfig, Model
from emo.data import registry
from emo.journal import Journal
from emo.wire.compression import digest
from emo.wire.messages import ActivationBatch, GlobalModel
from testbed.chaos import replay as chaos_replay
from testbed.chaos.cache_watch import CacheWatch
from testbed.chaos.invariants import Closed

MODEL = Model(name="cnn", width=0.25)
CLOUD = CloudConfig.model_validate({"model": MODEL, "rounds": {"rounds": 2}, "training": {"lr": 0.05}})
DEVICES = {
    name: DeviceConfig.model_validate(
        {"id": name, "edge": "edge-1", "model": MODEL, "partition": {"devices": 40, "index": index}}
    )
    for index, name in enumerate("abc")
}


def closed(*members):
    return Closed(frozenset("abc"), dict.fromkeys(members, 1), "")


@pytest.fixture(scope="module")
def true():
    """Rounds of a and b, then of b and c; and what b and c showed their edge."""
    plain = {1: closed("a", "b"), 2: closed("b", "c")}
    wanted = {("b", batch, 2) for batch in range(2)} | {("c", 0, 1)}  # c was asked in round 1, and too late
    again = chaos_replay.replay(CLOUD, DEVICES, plain, wanted)
    record = {number: each._replace(digest=digest(again.models[number])) for number, each in plain.items()}
    return record, again


def test_the_same_members_give_the_same_bits(true):
    record, again = true
    assert chaos_replay.compare(record, again, again.models[2]) == []
    assert chaos_replay.compare(record, chaos_replay.replay(CLOUD, DEVICES, record), again.models[2]) == []


@pytest.mark.parametrize("members", [("a",), ("a", "b", "c"), ("a", "c")])
def test_other_members_are_found_by_their_bits(true, members):
    record, again = true
    lie = record | {1: closed(*members)._replace(digest=record[1].digest)}
    wrong = chaos_replay.compare(lie, chaos_replay.replay(CLOUD, DEVICES, lie), again.models[2])
    assert {each.invariant for each in wrong} == {"bits"}
    assert len(wrong) == 3  # both rounds and the final model


def test_what_a_hostile_member_sent_is_found_by_the_bits_that_it_gave(true):
    record, again = true
    start = again.models[1]
    lies = [{name: np.full_like(array, factor) for name, array in start.items()} for factor in (1, 2, 3)]
    devices = {name: DEVICES[name] for name in "ab"}  # c is the hostile one
    for lie in lies:
        told = dict(record)
        plain = chaos_replay.replay(CLOUD, devices, told, sent={2: [lie]})
        told[2] = record[2]._replace(digest=digest(plain.models[2]))
        found = chaos_replay.replay(CLOUD, devices, told, sent={2: lies})
        assert chaos_replay.compare(told, found, plain.models[2]) == []
        other = chaos_replay.replay(CLOUD, devices, told, sent={2: [each for each in lies if each is not lie]})
        assert [each.invariant for each in chaos_replay.compare(told, other, None)] == ["bits"]


def test_one_flipped_bit_of_the_final_model_is_found(true):
    record, again = true
    flipped = {name: array.copy() for name, array in again.models[2].items()}
    next(iter(flipped.values())).view(np.uint8).reshape(-1)[0] ^= 1
    assert [each.invariant for each in chaos_replay.compare(record, again, flipped)] == ["bits"]


def test_cached_batches_are_what_the_device_shows_through_its_codec(true):
    _, again = true
    # As the wire has them: a delta's codec, and a node of its own.
    train, _ = registry.load(DEVICES["b"].data)
    node = DeviceNode(DEVICES["b"], train, Journal())
    model = GlobalModel("run", 2, ("b",), CLOUD.training, again.models[1])
    sent = [message for message in node.handle(model, 0.0) if isinstance(message, ActivationBatch)]
    found = {("b", each.batch, each.version): chaos_replay.crc(each.activations.array(1 << 24)) for each in sent[:2]}
    held = {key: value for key, value in found.items() if key in again.batches}
    assert held
    assert chaos_replay.cached(held, again) == []
    key = next(iter(held))
    assert [each.invariant for each in chaos_replay.cached(held | {key: held[key] ^ 1}, again)] == ["cache"]
    assert "never" in chaos_replay.cached({("a", 0, 2): 0}, again)[0].text


def test_the_watch_sees_a_batch_go_back(tmp_path):
    folder = tmp_path / "batches" / "device-0" / "00"
    folder.mkdir(parents=True)
    watch = CacheWatch({"edge-1": tmp_path})
    for version in (1, 3):
        (folder / f"7-{version}-00000000.h5").touch()
        watch.look()
    (folder / "7-1-00000000.h5").unlink()
    watch.look()
    assert watch.backwards == []
    (folder / "7-3-00000000.h5").rename(folder / "7-2-00000000.h5")
    watch.look()
    assert watch.backwards == ["edge-1: batch 7 of device-0 went from 3 to 2"]
