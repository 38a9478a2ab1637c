"""What a device offers: deltas only against what the edge has confirmed, everything in a fresh round."""

import numpy as np
import pytest
from fleet import MODEL, dataset

from device_app.intervals import Sent
from device_app.node import DeviceNode
from device_app.publisher import Publisher, PublisherState
from emo import snapshot_file
from emo.config import DeviceConfig, Training
from emo.errors import BaseError, CodecError
from emo.journal import Journal
from emo.models import split_network
from emo.wire.codec import Packed, decode
from emo.wire.messages import ActivationBatch, GlobalModel, Interval, TapReport

LIMIT = 1 << 20
RNG = np.random.default_rng(0)
FIRST = np.maximum(RNG.standard_normal((16, 8, 4, 4)), 0).astype(np.float32)
LABELS = np.zeros(16, np.int32)


def offers(codec="int4-delta"):
    made = Publisher("device-1", "edge-1", codec)
    made.begin("run")
    return made


def delta():
    base = Packed(FIRST, "int4-delta")
    base.data()
    data = Packed(FIRST + np.float32(0.01), "int4-delta", base).data()
    return np.frombuffer(data, np.uint8)


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
    weights = split_network.weights(split_network.network(MODEL, 0))
    sent = []
    for number, fresh in [(1, False), (2, False), (3, True), (4, False)]:
        model = GlobalModel("run", number, ("d",), Training(), weights, fresh=fresh)
        batches = [m for m in node.handle(model, 0) if isinstance(m, ActivationBatch)]
        for batch in batches:
            list(node.handle(Interval("run", "e", "d", batch.batch, batch.version, 9.0), 0))
        sent.append(len(batches))
    assert sent == [6, 0, 6, 0]


# -- a state that another process goes on from


def busy(codec="int4-delta"):
    """A device in the middle of a run: answered, unanswered and skipped batches."""
    device = offers(codec)
    for batch in range(3):
        sent = device.offer(batch, 1, FIRST + batch, LABELS)
        sent.activations.data()
        if batch:
            device.answer(answer(sent, interval=1.5))
    device.offer(1, 2, FIRST, LABELS)
    return device


def says(device):
    """What it sends from here on, to the bit."""
    found = []
    for version in range(3, 7):
        for batch in range(4):
            sent = device.offer(batch, version, FIRST + np.float32(0.01 * version), LABELS)
            found.append(None if sent is None else (sent.version, sent.activations.data()))
            if sent is not None and version % 2:
                device.answer(answer(sent, interval=1.0))
    return found, device.report(9)


@pytest.mark.parametrize("codec", ["int4-delta", "int4", "fp32"])
def test_a_device_goes_on_in_another_process(codec):
    state = busy(codec).state()
    then = Publisher("device-1", "edge-1", codec)
    then.resume(state)
    assert then.run == "run"
    assert then.state() == state
    assert says(then) == says(busy(codec))


def test_a_state_that_is_not_whole_is_refused_and_changes_nothing():
    state, then = busy().state(), busy()
    assert len(state) > 1000
    for at in range(0, len(state), 37):
        for bad in (state[:at], state[:at] + bytes([state[at] ^ 1]) + state[at + 1 :], state + state[:at]):
            if bad != state:
                with pytest.raises(CodecError):
                    then.resume(bad)
    assert says(then) == says(busy())


def packed(arrays=None, **changes):
    fields = {"run": "run", "attempted": 1, "sent": 1, "intervals": {}} | changes
    state = PublisherState.model_construct(**fields)
    return b"".join(snapshot_file.pack("device", state, arrays or {}))


@pytest.mark.filterwarnings("ignore:Pydantic serializer")
@pytest.mark.parametrize(
    "changes",
    [
        {"attempted": -1},
        {"intervals": {0: Sent(1, float("nan"))}},
        {"intervals": {0: Sent(1, -1.0)}},
        {"intervals": {-1: Sent(1)}},
        {"intervals": {0: {"version": 1, "more": 1}}},
        {"run": "a/b"},
        {"arrays": {"0": np.zeros(4, np.uint8)}},
        {"arrays": {"x": np.frombuffer(Packed(FIRST, "int4").data(), np.uint8)}},
        {"arrays": {"0": delta()}},
    ],
)
def test_a_state_whose_checksum_is_right_is_still_not_believed(changes):
    with pytest.raises(CodecError):
        offers().resume(packed(**changes))
    offers().resume(packed())
