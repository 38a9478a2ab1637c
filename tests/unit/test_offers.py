"""What a device offers: deltas only against what the edge has confirmed, everything in a fresh round."""

import numpy as np
import pytest
from fleet import MODEL, dataset

from device_app.node import DeviceNode
from device_app.offers import Offers
from emo import models
from emo.codec import decode
from emo.config import DeviceConfig, Training
from emo.errors import BaseError
from emo.journal import Journal
from emo.messages import ActivationBatch, GlobalModel, Interval, TapReport

LIMIT = 1 << 20
RNG = np.random.default_rng(0)
FIRST = np.maximum(RNG.standard_normal((16, 8, 4, 4)), 0).astype(np.float32)
LABELS = np.zeros(16, np.int32)


def offers(codec="int4-delta"):
    made = Offers("device-1", "edge-1", codec)
    made.begin("run")
    return made


def answer(batch, interval=0.0):
    return Interval("run", "edge-1", "device-1", batch.batch, batch.version, interval)


def test_a_delta_goes_only_against_what_the_edge_has_confirmed():
    device, drift = offers(), np.float32(0.01)
    one = device.offer(0, 1, FIRST, LABELS)
    held = decode(one.activations.data(), LIMIT)
    two = device.offer(0, 2, FIRST + drift, LABELS)  # not answered: in full
    decode(two.activations.data(), LIMIT)
    device.answer(answer(two))
    three = device.offer(0, 3, FIRST + 2 * drift, LABELS)
    with pytest.raises(BaseError):
        decode(three.activations.data(), LIMIT, held)
    held = decode(two.activations.data(), LIMIT)
    assert decode(three.activations.data(), LIMIT, held).shape == FIRST.shape
    device.answer(answer(two))  # late and doubled: says nothing of version 3
    assert decode(device.offer(0, 4, FIRST, LABELS).activations.data(), LIMIT).shape == FIRST.shape


def test_a_new_run_has_no_base():
    device = offers()
    device.answer(answer(device.offer(0, 1, FIRST, LABELS)))
    device.begin("next")
    decode(device.offer(0, 2, FIRST, LABELS).activations.data(), LIMIT)


def test_a_codec_without_deltas_keeps_nothing():
    device = offers("int4")
    batch = device.offer(0, 1, FIRST, LABELS)
    assert batch.activations.data()
    assert not batch.activations.full()


def test_a_fresh_round_sends_what_the_interval_would_hold_back():
    device = offers()
    device.answer(answer(device.offer(0, 1, FIRST, LABELS), interval=5.0))
    assert device.offer(0, 2, FIRST, LABELS) is None
    fresh = device.offer(0, 3, FIRST, LABELS, fresh=True)
    assert fresh.version == 3
    device.answer(answer(fresh, interval=1.0))
    assert device.offer(0, 4, FIRST, LABELS) is None
    assert device.offer(0, 5, FIRST, LABELS) is not None
    assert device.report(1) == TapReport("run", "edge-1", "device-1", 1, attempted=5, sent=3)


def test_a_device_lets_everything_through_in_a_fresh_round():
    node = DeviceNode(DeviceConfig(id="d", edge="e", model=MODEL, batch_size=16), dataset(), Journal())
    weights = models.weights(models.network(MODEL, 0))
    sent = []
    for number, fresh in [(1, False), (2, False), (3, True), (4, False)]:
        model = GlobalModel("run", number, ("d",), Training(), weights, fresh=fresh)
        batches = [m for m in node.handle(model, 0) if isinstance(m, ActivationBatch)]
        for batch in batches:
            list(node.handle(Interval("run", "e", "d", batch.batch, batch.version, 9.0), 0))
        sent.append(len(batches))
    assert sent == [6, 0, 6, 0]
