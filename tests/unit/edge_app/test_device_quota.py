"""A device that floods or replays: what it may take of its edge, and what the others have beside it."""

import numpy as np
import pytest
from fleet import MODEL

from edge_app.cache.disk import DiskCache
from edge_app.cache.replay_cache import ReplayCache
from edge_app.device_quota import DeviceQuota
from edge_app.intervals.log_file import IntervalLog
from edge_app.node import EdgeNode
from emo.config import EdgeConfig
from emo.errors import WireError
from emo.journal import Journal
from emo.models import split_network
from emo.wire.codec import Packed
from emo.wire.messages import ActivationBatch, Interval, RunState, TapReport

pytestmark = pytest.mark.usefixtures("one_thread")

DEVICES = ("a", "b", "c")
ACTIVATIONS = np.random.default_rng(0).random((4, *split_network.split_shape(MODEL)), np.float32)


def batch(device, number=0, version=1, run="run-1", activations=ACTIVATIONS):
    return ActivationBatch(
        run,
        "e",
        device,
        number,
        version,
        Packed(activations, "fp32"),
        np.arange(len(activations), dtype="<i4") % 4,
    )


def state(run="run-1", round=1, phase="training"):
    return RunState(run, round, 9, phase)


class Edge:
    """An edge over a folder, that allows `device_batches` of a device; `restart` as after a kill."""

    def __init__(self, folder, device_batches=10, budget=None):
        self.folder, self.budget, self.disk = folder, budget, None
        values = {
            "id": "e",
            "devices": DEVICES,
            "model": MODEL,
            "controller": {"policy": "always"},
            "cache": {"device_batches": device_batches},
            "overlay": {"batches": 1, "replay_ratio": 1},
        }
        self.config = EdgeConfig.model_validate(values)
        self.restart()

    def restart(self):
        if self.disk is not None:
            self.disk.close()
        self.disk, self.journal = DiskCache(self.folder, self.budget, "fifo"), Journal()
        cache = ReplayCache(self.disk, 1 << 20, 0)
        log = IntervalLog(self.folder, self.journal)
        self.node = EdgeNode(self.config, cache, self.journal, interval_log=log)
        self.tell(state())

    def tell(self, message):
        return [m for m in self.node.handle(message, 0.0) if m is not None]

    def counts(self, name):
        return self.journal.counts[name]


@pytest.fixture
def edge(tmp_path):
    made = []

    def make(**values):
        made.append(Edge(tmp_path / "cache", **values))
        return made[-1]

    yield make
    for each in made:
        each.disk.close()


# -- shares


def test_a_flood_ends_at_four_times_what_the_others_send(edge):
    one = edge()
    for device in ("b", "c"):
        for number in range(5):
            one.tell(batch(device, number))
    answers = [one.tell(batch("a", sent % 10, 1 + sent // 10)) for sent in range(60)]
    assert [bool(answer) for answer in answers] == [True] * 20 + [False] * 40
    assert one.counts("activations.over_share") == 40
    assert one.tell(batch("b", 5))  # nobody else is held back by it
    for version in (2, 3):
        for device in ("b", "c"):
            for number in range(5):
                one.tell(batch(device, number, version))
    assert one.tell(batch("a", 0, 8))  # the others have had their share: on it goes


def test_a_device_that_is_alone_has_nobody_to_crowd_out(edge):
    one = edge()
    assert all(one.tell(batch("a", 0, version)) for version in range(1, 60))


def test_numbers_beyond_what_a_device_may_have_are_refused(edge):
    one = edge()
    assert one.tell(batch("a", 9))
    with pytest.raises(WireError, match=r"batch 10 of a: .* 10 different .*device_batches"):
        one.tell(batch("a", 10))
    assert one.node.gauges()["cache.entries"] == 1


def test_an_old_report_changes_nothing():
    quota = DeviceQuota(10, Journal())
    for attempted in (5, 9, 5):
        quota.report(TapReport("r", "e", "a", 1, attempted, attempted - 1), 10)
    assert quota.state.reports == {"a": (9, 8)}


def test_a_large_batch_is_as_many_as_it_holds_of_the_usual_size(edge):
    one = edge(device_batches=10)
    for device in ("b", "c"):
        one.tell(batch(device))
    large = np.tile(ACTIVATIONS, (16, 1, 1, 1))
    answers = [one.tell(batch("a", number, activations=large)) for number in range(4)]
    assert [bool(answer) for answer in answers] == [True, False, False, False]
    assert one.node._quota.state.served == {"a": 16, "b": 1, "c": 1}


def test_most_of_an_edge_are_not_outdone_by_one_that_lies():
    quota = DeviceQuota(10, Journal())
    quota.state.served.update({"liar": 10**6, "a": 30, "b": 40, "c": 50})
    assert [quota.admits(batch(device)) for device in ("liar", "a", "b", "c")] == [False, True, True, True]


def test_shares_survive_a_snapshot(edge, tmp_path):
    one = edge()
    for number in range(3):
        one.tell(batch("a", number))
    one.tell(TapReport("run-1", "e", "a", 1, 3, 3))
    snapshot = one.node.snapshot()
    assert (snapshot.node.quota.served, snapshot.node.quota.sizes) == ({"a": 3}, {"a": 4})
    one.restart()
    one.node.resume(snapshot)
    assert one.node._quota.state.served == {"a": 3}
    assert (one.node._quota.state.sizes, one.node._quota.state.reports) == ({"a": 4}, {"a": (3, 3)})


# -- replays


def test_a_replayed_batch_is_known_without_the_disk_and_answered_only_for_the_newest(edge, monkeypatch):
    one = edge()
    for version in (1, 2, 3):
        one.tell(batch("a", 0, version))

    def never(*_args):
        raise AssertionError("read the disk")

    monkeypatch.setattr(one.node._cache, "get", never)
    for version in (1, 2):
        assert one.tell(batch("a", 0, version, activations=ACTIVATIONS + 1)) == []
    assert [type(m) for m in one.tell(batch("a", 0, 3))] == [Interval]
    assert one.counts("activations.duplicate") == 3
    assert one.counts("activations.stored") == 3
    assert one.node._quota.state.served == {"a": 3}


def test_versions_do_not_go_back_when_the_cache_has_given_the_batch_up(edge):
    one = edge(budget=40_000)
    for number in range(10):
        one.tell(batch("a", number, 5))
    kept = one.node.gauges()["cache.entries"]
    assert kept < 10  # the first are gone
    assert one.tell(batch("a", 0, 4)) == []
    assert one.counts("activations.duplicate") == 1
    one.restart()
    assert one.tell(batch("a", 0, 4)) == []
    assert one.counts("activations.duplicate") == 1
    assert one.tell(batch("a", 0, 6))


def test_a_run_that_is_over_does_not_come_back(edge):
    one = edge()
    one.tell(state("run-2"))
    one.tell(batch("a", run="run-2"))
    one.tell(state("run-1"))
    assert one.counts("runs.old") == 1
    assert one.node.gauges()["cache.entries"] == 1  # nothing was thrown away for it
    assert one.tell(batch("a", version=2, run="run-2"))
    with pytest.raises(WireError, match="of run run-1"):
        one.tell(batch("a", version=3, run="run-1"))


def test_a_round_that_is_over_does_not_turn_the_schedule_back(edge):
    one = edge()
    for number in (1, 6, 2):
        one.tell(state(round=number))
    assert one.node._training.state.progress == pytest.approx(6 / 9)


@pytest.mark.parametrize("message", [batch("z"), batch("a", run="other"), batch("a", version=10_000)])
def test_what_does_not_belong_here_takes_nothing_of_a_share(edge, message):
    one = edge()
    with pytest.raises(WireError):
        one.tell(message)
    assert not one.node._quota.state.served
