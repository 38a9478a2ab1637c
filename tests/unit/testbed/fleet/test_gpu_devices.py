"""Devices trained together send what each would have sent by itself."""

import numpy as np
import pytest

from emo.config import Data, Model, Tap, Training
from emo.data import registry
from emo.errors import CodecError, ModelError
from emo.models import split_network
from emo.wire.messages import GlobalModel, Interval
from testbed import node_configs
from testbed.fleet.gpu_devices import GpuDevices
from testbed.fleet.messages import BeginRound, TrainDevice
from testbed.fleet.worker import Worker
from testbed.plan import Plan
from testbed.workers import packets
from testbed.workers.packets import Sender
from testbed.workers.shared_memory import SharedData

pytestmark = pytest.mark.usefixtures("one_thread")

NUMBERS = (1, 4, 5)


def plan(method, **changes):
    values = {
        "method": method,
        "model": Model(name="cnn", width=0.5),
        "devices": 6,
        "per_round": 3,
        "samples": 52,
        "tap": Tap(codec="fp32"),
        "training": Training(lr=0.05, momentum=0.5, epochs=2),
    }
    return Plan(**(values | changes))


def shared(settings):
    training, _ = registry.load(Data())
    return SharedData(training, node_configs.shares(settings, training.labels))


def opened(settings, number, **changes):
    ids = tuple(node_configs.device_id(settings, each) for each in NUMBERS)
    values = {"weights": split_network.weights(node_configs.network(settings)), "fresh": False}
    values |= changes
    return GlobalModel("run", number, ids, settings.training, values["weights"], fresh=values["fresh"])


def alone(settings, held, model, sampled, folder):
    """By testbed/fleet/worker.py: a DeviceNode for each."""
    handle = Worker(settings, held, folder)
    handle(BeginRound(Sender(0).encode(model)))
    return [handle(request) for request in sampled]


def message(sent):
    (found,) = packets.decode(sent)
    return found


def check(ours, theirs):
    assert len(ours) == len(theirs)
    for one, two in zip(ours, theirs, strict=True):
        assert one.samples == two.samples
        assert one.loss == pytest.approx(two.loss, rel=1e-3)
        mine, other = message(one.update), message(two.update)
        assert (mine.device, mine.round, mine.samples, mine.form) == (
            other.device,
            other.round,
            other.samples,
            other.form,
        )
        for name, array in other.weights.items():
            np.testing.assert_allclose(mine.weights[name], array, rtol=0, atol=1e-3, err_msg=name)
        assert len(one.offered.waves) == len(two.offered.waves)
        for wave, expected in zip(one.offered.waves, two.offered.waves, strict=True):
            assert bool(wave) == bool(expected)
            if wave:
                batch, true = message(wave), message(expected)
                assert (batch.device, batch.edge, batch.batch, batch.version) == (
                    true.device,
                    true.edge,
                    true.batch,
                    true.version,
                )
                assert np.array_equal(batch.labels, true.labels)
                arrays = [each.activations.array(1 << 20) for each in (batch, true)]
                np.testing.assert_allclose(*arrays, rtol=0, atol=1e-2)
        assert bool(one.offered.report) == bool(two.offered.report)
        if one.offered.report:
            assert message(one.offered.report) == message(two.offered.report)


@pytest.mark.parametrize("method", ["fl-small", "fl-large", "emo"])
def test_a_first_round(method, tmp_path):
    settings = plan(method)
    held, model = shared(settings), opened(settings, 1)
    sampled = [TrainDevice(number, b"", []) for number in NUMBERS]
    sent = GpuDevices(settings, held, "cpu").round(model, sampled)
    check(sent, alone(settings, held, model, sampled, tmp_path))
    waves = [bool(wave) for each in sent for wave in each.offered.waves]
    assert len(waves) == 3 * 2 * 4
    assert any(waves) == (method == "emo")


@pytest.mark.parametrize("fresh", [False, True])
def test_intervals_and_what_was_kept_decide_in_the_next_round(tmp_path, fresh):
    settings = plan("emo", training=Training(lr=0.05))
    held, together = shared(settings), GpuDevices(settings, shared(settings), "cpu")
    sampled = [TrainDevice(number, b"", []) for number in NUMBERS]
    first = together.round(opened(settings, 1), sampled)
    again = []
    for each, sent in zip(sampled, first, strict=True):
        sender, answers = Sender(1), []
        for wave in sent.offered.waves[:2]:  # the edge has answered for two of four batches
            batch = message(wave)
            answers += sender.encode(Interval("run", batch.edge, batch.device, batch.batch, batch.version, 3.0))
        again.append(TrainDevice(each.device, sent.state, answers))
    model = opened(settings, 2, fresh=fresh)
    second = together.round(model, again)
    check(second, alone(settings, held, model, again, tmp_path))
    for each in second:
        assert sum(map(bool, each.offered.waves)) == (4 if fresh else 2)
        report = message(each.offered.report)
        assert (report.attempted, report.sent) == (8, 8 if fresh else 6)


def test_another_number_of_devices_and_another_round_use_the_same_stack():
    settings = plan("fl-small")
    together, model = GpuDevices(settings, shared(settings), "cpu"), opened(settings, 1)
    sampled = [TrainDevice(number, b"", []) for number in NUMBERS]
    first = together.round(model, sampled)
    together.round(opened(settings, 2), sampled[:1])
    assert together.round(model, sampled) == first


def test_damaged_input_is_refused():
    settings = plan("emo")
    together = GpuDevices(settings, shared(settings), "cpu")
    with pytest.raises(CodecError, match="damaged"):
        together.round(opened(settings, 1), [TrainDevice(1, b"junk" * 8, [])])
    other = opened(settings, 1, weights={"w": np.zeros(2, np.float32)})
    with pytest.raises(ModelError, match="do not fit"):
        together.round(other, [TrainDevice(1, b"", [])])
