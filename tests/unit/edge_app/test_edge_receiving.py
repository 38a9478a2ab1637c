"""The edge's receiving half: which score it computes, whom it answers, and what a restart changes."""

import numpy as np
import pytest
from fleet import MODEL, Fleet

from edge_app.cache.disk import DiskCache
from edge_app.cache.replay_cache import ReplayCache
from edge_app.intervals import log_file
from edge_app.intervals.log_file import IntervalLog
from edge_app.node import EdgeNode
from emo.config import EdgeConfig
from emo.errors import WireError
from emo.journal import Journal
from emo.models import split_network
from emo.wire.codec import Packed
from emo.wire.messages import ActivationBatch, RunState

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (16, *split_network.split_shape(MODEL))
OLD = np.random.default_rng(0).random(SHAPE, np.float32)
NEAR = OLD + 0.2 * np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
TURN, _ = np.linalg.qr(np.random.default_rng(2).standard_normal((SHAPE[1], SHAPE[1])))
TURNED = np.einsum("ncxy,cd->ndxy", OLD, TURN).astype(np.float32)


class Edge:
    """One edge over a folder; `restart` as after a kill."""

    def __init__(self, folder, **controller):
        self.folder = folder
        values = {
            "id": "edge-1",
            "devices": ["device-0"],
            "model": MODEL,
            "controller": {"max_interval": 64, **controller},
        }
        self.config = EdgeConfig.model_validate(values)
        self.disk = None
        self.restart()

    def restart(self, run="run-1"):
        if self.disk is not None:
            self.disk.close()
        self.disk, self.journal = DiskCache(self.folder), Journal()
        log = IntervalLog(self.folder, self.journal)
        self.node = EdgeNode(self.config, ReplayCache(self.disk, 1 << 20, 0), self.journal, interval_log=log)
        assert list(self.node.handle(RunState(run, 1, 9, "training"), 0)) == []
        return self

    def receives(self, version, activations=OLD, run="run-1"):
        """(version, interval) of the answer, None where there is none."""
        labels = np.arange(16, dtype="<i4") % 4
        packed = Packed(activations, "fp32")
        batch = ActivationBatch(run, "edge-1", "device-0", 0, version, packed, labels)
        answers = [(m.version, m.interval) for m in self.node.handle(batch, 0)]
        return answers[0] if answers else None

    def counts(self, name):
        return self.journal.counts[name]


@pytest.fixture
def edge(tmp_path):
    made = []

    def make(**controller):
        made.append(Edge(tmp_path / "cache", **controller))
        return made[-1]

    yield make
    for each in made:
        each.disk.close()


def test_the_policy_chooses_the_score(edge, tmp_path):
    found = {}
    for policy in ("svcca", "cka"):
        one = edge(policy=policy)
        one.restart(policy)
        assert one.receives(1, run=policy) == (1, 1.0)
        found[policy] = one.receives(2, NEAR, run=policy)[1]
        one.disk.close()
        (_, ((row, _),)) = log_file.read(tmp_path / "cache")
        assert found[policy] == row.interval == pytest.approx(1 / (1 - row.score))
    assert found["svcca"] != found["cka"]


@pytest.mark.parametrize(("policy", "intervals"), [("always", 0), ("fixed(4)", 4), ("once", 128)])
def test_the_policies_that_ask_for_no_score(edge, policy, intervals):
    one = edge(policy=policy)
    assert [one.receives(v, OLD)[1] for v in (1, 2, 3)] == [intervals] * 3
    assert one.counts("controller.nan_scores") == 0


def test_constant_activations_are_counted_and_sent_at_the_next_attempt(edge):
    one = edge()
    one.receives(1, 0 * OLD)
    assert one.receives(2, 0 * OLD) == (2, 0.0)
    assert one.counts("controller.nan_scores") == 1


def test_a_rotation_is_bounded_and_counted(edge):
    one = edge()
    one.receives(1)
    assert one.receives(2, OLD)[1] == 64
    assert one.counts("controller.guarded") == 0
    assert one.receives(3, TURNED)[1] < 8
    assert one.counts("controller.guarded") == 1


def test_training_itself_is_not_what_the_bound_speaks_on(tmp_path):
    done = Fleet(tmp_path, rounds=6).run()
    edges = [done.journals[name].counts for name in done.edges]
    assert sum(counts["activations.stored"] for counts in edges) > 15  # ten are first versions
    assert [counts["controller.guarded"] for counts in edges] == [0, 0]
    done.close()


def test_what_is_not_finite_is_refused_and_changes_nothing(edge):
    one = edge()
    one.receives(1)
    with pytest.raises(WireError, match="NaN or infinity"):
        one.receives(2, np.full_like(OLD, np.inf))
    assert one.receives(2, OLD) == (2, 64)


# -- doubled batches and restarts


def test_a_doubled_batch_gets_the_same_answer_and_an_older_one_none(edge):
    one = edge()
    one.receives(1)
    answer = one.receives(2, NEAR)
    assert one.receives(2, NEAR) == answer
    assert one.receives(1) is None
    assert one.counts("activations.duplicate") == 2
    assert one.counts("activations.stored") == 2


def test_an_edge_that_comes_back_in_the_same_run_knows_its_intervals(edge):
    one = edge()
    one.receives(1)
    answer = one.receives(2, NEAR)
    one.restart()
    assert one.receives(2, NEAR) == answer
    assert one.receives(3, NEAR) == (3, 64)


def test_an_edge_that_stopped_between_storing_and_answering_leaves_the_device_to_send(edge, tmp_path):
    one = edge()
    one.receives(1)
    one.disk.put("device-0", 0, 2, NEAR, np.arange(16) % 4)
    one.restart()
    assert one.receives(2, NEAR) is None
    assert one.receives(3, NEAR) == (3, 64)


@pytest.mark.parametrize("damage", ["gone", "junk"])
def test_an_edge_that_lost_its_table_goes_on(edge, tmp_path, damage):
    one = edge()
    one.receives(1)
    path = tmp_path / "cache" / "intervals"
    path.unlink() if damage == "gone" else path.write_bytes(b"junk" * 999)
    one.restart()
    assert one.receives(1) is None
    assert one.receives(2, OLD) == (2, 64)
    assert one.counts("intervals.damaged") == (damage == "junk")


def test_another_run_empties_the_table(edge, tmp_path):
    one = edge()
    one.receives(1)
    one.restart("run-2")
    assert log_file.read(tmp_path / "cache") == ("run-2", [])
    assert one.receives(1, run="run-2") == (1, 1.0)
