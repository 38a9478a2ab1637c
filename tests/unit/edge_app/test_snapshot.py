"""An edge's state as files: another node goes on with the same bits; what is not that state is refused."""

import dataclasses

import numpy as np
import pytest
import safetensors.torch
from fleet import MODEL

from edge_app import snapshot
from edge_app.cache.disk import DiskCache
from edge_app.cache.replay_cache import ReplayCache
from edge_app.node import EdgeNode
from emo.config import Controller, EdgeConfig, Overlay
from emo.errors import CacheError, ConfigError
from emo.journal import Journal
from emo.models import split_network
from emo.wire.codec import Packed
from emo.wire.messages import ActivationBatch, RunState, TapReport
from testbed.fleet.edge import mirror

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (8, *split_network.split_shape(MODEL))
OVERLAY = Overlay(mixup=0.3, checkpoint_steps=4, lr=0.05)


@pytest.fixture
def edge(tmp_path):
    made = []

    def make(name="edge", overlay=OVERLAY, policy="svcca", sampling="mixed"):
        disk = DiskCache(tmp_path / name, durability="none")
        made.append(disk)
        config = EdgeConfig(
            id="edge-1",
            devices=("device-0", "device-1"),
            model=MODEL,
            overlay=overlay,
            controller=Controller(policy=policy),
        )
        return EdgeNode(config, ReplayCache(disk, 1 << 20, 0, sampling=sampling), Journal())

    yield make
    for disk in made:
        disk.close()


def busy(node, versions):
    """Batches, reports and steps; what it answers, and the overlay after each version."""
    random, found = np.random.default_rng(0), []
    first = np.maximum(random.standard_normal(SHAPE), 0).astype(np.float32)
    for version in versions:
        list(node.handle(RunState("run", version, 20, "training"), 0.0))
        for batch in range(6):
            drift = np.float32(0.02 * version * (batch + 1))
            packed = Packed(first + drift * np.roll(first, batch), "int8")
            labels = (np.arange(8) % 4).astype(np.int32)
            device = f"device-{batch % 2}"
            message = ActivationBatch("run", "edge-1", device, batch, version, packed, labels)
            found += [answer.interval for answer in node.handle(message, 0.0)]
        for device in ("device-0", "device-1"):
            list(node.handle(TapReport("run", "edge-1", device, version, 3 * version, 3 * version), 0.0))
        while list(node.work(0.0)):
            pass
        found.append({name: array.tobytes() for name, array in node.overlay().items()})
    return found


def assert_same(one, two):
    assert (str(one.node), one.sampler) == (str(two.node), two.sampler)  # of NaN, which is no other NaN
    for mine, theirs in ((one.now, two.now), (one.kept, two.kept)):
        assert (mine.steps, mine.random) == (theirs.steps, theirs.random)
        assert {name: array.numpy().tobytes() for name, array in mine.arrays.items()} == {
            name: array.numpy().tobytes() for name, array in theirs.arrays.items()
        }


@pytest.mark.parametrize("sampling", ["mixed", "importance", "fresh"])
@pytest.mark.parametrize("policy", ["svcca", "always"])
def test_another_node_goes_on_with_the_same_bits(edge, tmp_path, sampling, policy):
    uninterrupted = edge("whole", policy=policy, sampling=sampling)
    whole = busy(uninterrupted, range(1, 6))
    first = edge("first", policy=policy, sampling=sampling)
    before = busy(first, range(1, 4))
    snapshot.write(tmp_path, first.snapshot())
    mirror(tmp_path / "first", tmp_path / "then")
    then = edge("then", policy=policy, sampling=sampling)
    then.resume(snapshot.read(tmp_path, then.like()))
    assert_same(then.snapshot(), first.snapshot())
    assert before + busy(then, range(4, 6)) == whole
    assert str(then.snapshot().node) == str(uninterrupted.snapshot().node)


def test_it_is_written_and_read_whole(edge, tmp_path):
    node = edge()
    busy(node, range(1, 4))
    kept = node.snapshot()
    snapshot.write(tmp_path, kept)
    read = snapshot.read(tmp_path, node.like())
    assert_same(read, kept)
    assert read.now.steps > read.kept.steps > 0


@pytest.mark.parametrize("how", ["gone", "cut", "empty", "longer", "other"])
def test_what_is_no_snapshot_is_refused(edge, tmp_path, how):
    node = edge()
    busy(node, (1, 2))
    snapshot.write(tmp_path, node.snapshot())
    path = tmp_path / snapshot.NAME
    content = path.read_bytes()
    path.unlink()
    if how != "gone":
        changed = {"cut": content[:-7], "empty": b"", "longer": content + bytes(9), "other": b'{"run": 1}'}
        path.write_bytes(changed[how])
    with pytest.raises(CacheError):
        snapshot.read(tmp_path, node.like())


def test_a_snapshot_of_another_overlay_is_refused(edge, tmp_path):
    node = edge()
    busy(node, (1,))
    snapshot.write(tmp_path, node.snapshot())
    like = node.like()
    other = dataclasses.replace(like, arrays={name: array[..., :1] for name, array in like.arrays.items()})
    with pytest.raises(CacheError):
        snapshot.read(tmp_path, other)


def test_a_snapshot_of_another_version_is_refused(edge, tmp_path):
    (tmp_path / "edge.json").write_text('{"run": "run"}')
    like = edge().like()
    arrays = {f"now/{name}": array for name, array in like.arrays.items()}
    (tmp_path / "edge.safetensors").write_bytes(safetensors.torch.save(arrays))
    with pytest.raises(ConfigError, match=r"edge\.safetensors: .*another version of EMO.*simulation anew"):
        snapshot.read(tmp_path, like)
