"""The edge's training half: its budget, and what a restart, a new run or a hopeless loss changes."""

import contextlib
import math

import numpy as np
import pytest
from fleet import MODEL

from edge_app.cache.disk import DiskCache
from edge_app.cache.replay_cache import ReplayCache
from edge_app.node import EdgeNode
from edge_app.overlay.checkpoint import CheckpointFile
from emo.config import EdgeConfig
from emo.journal import Journal
from emo.models import split_network
from emo.wire.codec import Packed
from emo.wire.messages import ActivationBatch, OverlayWeights, RunState, TapReport

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (16, *split_network.split_shape(MODEL))


class Edge:
    """An edge with a checkpoint, over one folder; as a context it is closed in good order."""

    def __init__(self, folder, **overlay):
        self._stack = contextlib.ExitStack()
        values = {"id": "edge-1", "devices": ["device-0"], "model": MODEL, "overlay": overlay}
        self.journal = Journal()
        disk = self._stack.enter_context(DiskCache(folder))
        self.cache = self._stack.enter_context(contextlib.closing(ReplayCache(disk, 1 << 20, 0)))
        file = self._stack.enter_context(CheckpointFile(folder, self.journal))
        config = EdgeConfig.model_validate(values)
        self.node = EdgeNode(config, self.cache, self.journal, checkpoint=file)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()

    def begin(self, run="run-1", phase="training"):
        list(self.node.handle(RunState(run, 1, 9, phase), 0.0))

    def receives(self, batches, version=1, run="run-1"):
        for number in range(batches):
            values = np.random.default_rng([number, version]).random(SHAPE, np.float32)
            packed = Packed(values, "int8")
            labels = np.arange(16, dtype="<i4") % MODEL.classes
            batch = ActivationBatch(run, "edge-1", "device-0", number, version, packed, labels)
            assert list(self.node.handle(batch, 0.0))

    def offered(self, count, run="run-1"):
        list(self.node.handle(TapReport(run, "edge-1", "device-0", 1, count, count), 0.0))

    def works(self, most=10_000, now=0.0):
        """What comes out of it: None for a step."""
        found = []
        while len(found) < most and (now_found := list(self.node.work(now))):
            found += now_found
        return found

    def bits(self):
        return {name: value.tobytes() for name, value in self.node.overlay().items()}


def test_the_budget_is_batches_replayed_for_batches_offered(tmp_path):
    with Edge(tmp_path, batches=2, replay_ratio=3.0) as edge:
        edge.begin()
        edge.receives(4)
        edge.offered(10)
        assert edge.works() == [None] * 15


def test_with_a_budget_of_time_it_trains_until_the_run_ends(tmp_path):
    with Edge(tmp_path, batches=2, budget="time", patience_s=5.0) as edge:
        edge.begin()
        assert edge.works(10) == []
        edge.receives(4)
        assert edge.works(100) == [None] * 100
        edge.begin(phase="finishing")
        assert edge.works(10, now=1.0) == [None] * 10
        (overlay,) = edge.works(10, now=6.0)
        assert isinstance(overlay, OverlayWeights)
        assert overlay.steps == 110


def test_a_killed_edge_goes_on_from_its_checkpoint_with_the_same_bits(tmp_path):
    settings = {"batches": 2, "replay_ratio": 8.0, "checkpoint_steps": 10}
    with Edge(tmp_path / "straight", **settings) as edge:
        edge.begin()
        edge.receives(8)
        assert len(edge.works(20)) == 20
        expected = edge.bits()
    with Edge(tmp_path / "killed", **settings) as edge:
        edge.begin()
        edge.receives(8)
        assert len(edge.works(13)) == 13
    with Edge(tmp_path / "killed", **settings) as edge:
        edge.begin()
        edge.offered(8)
        assert len(edge.works(10)) == 10  # three of the thirteen were lost
        assert edge.bits() == expected


def test_a_cloud_that_asks_again_gets_the_same_overlay_again(tmp_path):
    with Edge(tmp_path, patience_s=1.0) as edge:
        edge.begin()
        edge.receives(2)
        edge.begin(phase="finishing")
        *_, sent = edge.works(now=2.0)
        again = RunState("run-1", 9, 9, "finishing")
        assert list(edge.node.handle(again, 3.0)) == [sent]
        assert edge.works(now=9.0) == []
        assert list(edge.node.handle(RunState("run-1", 9, 9, "done"), 3.0)) == []


def test_another_run_starts_anew(tmp_path):
    with Edge(tmp_path, checkpoint_steps=5) as edge:
        edge.begin()
        fresh = edge.bits()
        edge.receives(4)
        edge.works(5)
        assert edge.bits() != fresh
    with Edge(tmp_path, checkpoint_steps=5) as edge:
        edge.begin("run-2")
        assert edge.bits() == fresh
        assert edge.works(1) == []


def test_a_hopeless_loss_ends_neither_the_edge_nor_its_budget(tmp_path, monkeypatch, caplog):
    with Edge(tmp_path, batches=1, replay_ratio=5.0) as edge:
        edge.begin()
        edge.receives(4)
        sample = edge.cache.sample

        def broken():
            found = sample()
            found.activations.fill_(math.nan)
            return found

        monkeypatch.setattr(edge.cache, "sample", broken)
        assert edge.works() == [None] * 20
        assert edge.journal.counts["overlay.rollbacks"] == 2
        assert "overlay.lr" in caplog.text
        assert all(np.isfinite(value).all() for value in edge.node.overlay().values())


def test_the_state_of_the_cache_is_seen_from_outside(tmp_path):
    with Edge(tmp_path, batches=2, replay_ratio=1.0) as edge:
        edge.begin()
        edge.receives(4, version=1)
        edge.receives(2, version=3)
        edge.works()
        found = edge.node.gauges()
        assert found["cache.entries"] == 4
        assert found["cache.age.0"] == 2
        assert found["cache.age.2"] == 2
        assert sum(v for name, v in found.items() if name.startswith("cache.trained_times.")) == 4
        assert found["cache.memory_hits"] + found["cache.disk_reads"] == found["cache.trained"] == 6
