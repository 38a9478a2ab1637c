"""The three nodes together, without a broker: the promise that FL is left alone, and who refuses what."""

import dataclasses

import numpy as np
import pytest
from fleet import MODEL, Fleet, dataset

from device_app.node import DeviceNode
from emo.config import DeviceConfig, Training
from emo.errors import DataError, WireError
from emo.journal import Journal
from emo.models import split_network
from emo.wire.codec import Packed
from emo.wire.messages import ActivationBatch, GlobalModel, OverlayWeights, RunState, Update

pytestmark = pytest.mark.usefixtures("one_thread")


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
    assert not sum(journal.counts["frames.refused"] for journal in on.journals.values())
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
    assert sorted(done.cloud.state.overlays) == ["edge-1", "edge-2"]
    for overlay in done.cloud.state.overlays.values():
        assert overlay.attempted >= overlay.sent > 0
        assert overlay.steps * 4 >= 4.0 * overlay.attempted  # four batches a step, replay ratio 4
    attempted = sum(overlay.attempted for overlay in done.cloud.state.overlays.values())
    sent = sum(overlay.sent for overlay in done.cloud.state.overlays.values())
    assert sent < attempted  # intervals hold some back
    assert all(not journal.counts["bugs"] for journal in done.journals.values())


def test_a_repeated_global_model_is_answered_with_the_same_update():
    config = DeviceConfig(id="d", model=MODEL)
    node = DeviceNode(config, dataset(), Journal())
    message = GlobalModel("r", 1, ("d",), Training(), split_network.weights(split_network.network(MODEL, 0)))
    first = [m for m in node.handle(message, 0) if isinstance(m, Update)]
    again = list(node.handle(message, 1))
    assert again == first
    assert [m for m in node.handle(dataclasses.replace(message, round=2, devices=()), 2) if m] == []


def test_data_that_does_not_fit_the_model_is_refused():
    wrong = MODEL.model_copy(update={"input": (3, 8, 8)})
    with pytest.raises(DataError, match=r"model\.input"):
        DeviceNode(DeviceConfig(id="d", model=wrong), dataset(), Journal())


# -- the edge


def batch(**changes):
    values = {
        "run": "run-1",
        "edge": "edge-1",
        "device": "device-0",
        "batch": 0,
        "version": 1,
        "activations": Packed(np.ones((2, *split_network.split_shape(MODEL)), np.float32), "fp16"),
        "labels": np.array([0, 3], "<i4"),
    }
    return ActivationBatch(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"device": "device-4"}, "devices are"),
        ({"run": "old"}, "of run old"),
        ({"version": 2**52}, "cannot be"),
        ({"labels": np.array([0, 4], "<i4")}, "labels must be from"),
        ({"labels": np.array([0, -1], "<i4")}, "labels must be from"),
        ({"labels": np.array([], "<i4")}, "0 samples"),
        ({"labels": np.zeros(257, "<i4")}, r"257 samples.*cache\.batch_samples"),
        ({"labels": np.array([0, 1, 2], "<i4")}, "same `model`"),
        ({"activations": Packed(np.ones((2, 1, 4, 4), np.float32))}, "same `model`"),
        ({"activations": Packed(np.ones((2, 900, 90, 9), np.float32))}, "limit"),
        ({"activations": Packed(np.full((2, *split_network.split_shape(MODEL)), np.nan, np.float32))}, "NaN"),
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
    assert [m.interval for m in node.handle(batch(), 0)] == [1.0]  # doubled: the same answer again
    assert node._journal.counts["activations.duplicate"] == 1
    rng = np.random.default_rng(0)
    close = [Packed(rng.random((2, *split_network.split_shape(MODEL)), np.float32)) for _ in range(2)]
    list(node.handle(batch(version=2, activations=close[0]), 0))
    (answer,) = node.handle(batch(version=3, activations=close[0]), 0)
    assert answer.interval == 4  # nothing moved: the cap
    (answer,) = node.handle(batch(version=4, activations=close[1]), 0)
    assert answer.interval < 4


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
