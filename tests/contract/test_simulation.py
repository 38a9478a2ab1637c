"""One seeded plan, simulated and as a fleet over a real broker: the same global model after every round, though only the real
fleet tells observers how it does; a program of another vendor hears that, and what stays when the fleet is gone."""

import contextlib
import json
import struct
import threading
import time
import zlib
from pathlib import Path

import paho.mqtt.client as paho
import pytest
import torch
from links import Hears

from cloud_app.rounds.node import CloudNode
from cloud_app.rounds.state import begin
from device_app.node import DeviceNode
from edge_app.cache.disk import DiskCache
from edge_app.cache.replay_cache import ReplayCache
from edge_app.node import EdgeNode
from emo.config import Model, Training
from emo.data import registry
from emo.journal import Journal
from emo.models import split_network
from emo.mqtt.channel import MqttChannel
from emo.runtime.runner import Runner
from emo.wire.messages import (
    ActivationBatch,
    GlobalModel,
    Interval,
    OverlayWeights,
    Refused,
    RunState,
    Status,
    TapReport,
    Update,
)
from emo.wire.topics import subscription
from testbed import node_configs
from testbed.fleet.fleet import Fleet
from testbed.plan import Plan
from testbed.timing import scenario

PLAN = Plan(
    method="emo",
    model=Model(name="cnn", width=0.5, input=(1, 8, 8)),
    devices=4,
    per_round=3,
    rounds=2,
    samples=80,
    training=Training(lr=0.05),
)


@pytest.fixture(autouse=True)
def one_thread():
    """As a worker and a device's process have it: the same seed gives the same bits with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def simulated(plan, folder, training, test):
    fleet = Fleet(plan, scenario.load(None), training, test, 1, folder)
    try:
        found = []
        for number in range(1, plan.rounds + 1):
            fleet.round(number)
            found.append(_bits(fleet._cloud.state.weights))
        return found
    finally:
        fleet.close()


def over_mqtt(plan, folder, training, broker):
    """The same nodes as processes run them, each with channels of its own."""
    root, found, stop = broker.root, {}, threading.Event()

    def channel(name, *filters, will=None):
        return MqttChannel(broker, f"{root}-{name}", list(filters), Journal(), will)

    def start(node, channels, journal, **options):
        journal.watch(node.gauges)
        runner = Runner(node, channels, journal, report_s=5.0, **options)
        threads.append(threading.Thread(target=runner.run, args=(stop,), daemon=True))
        threads[-1].start()

    threads, turn = [], threading.Semaphore(1)
    watcher = channel("watcher", subscription(root, GlobalModel))
    watcher.start(Hears(lambda model: found.setdefault(model.round, _bits(model.weights))))
    watcher.wait_connected(10)
    with contextlib.ExitStack() as stack:
        stack.callback(watcher.stop)
        stack.callback(lambda: [thread.join(20) for thread in threads])
        stack.callback(stop.set)
        shares = node_configs.shares(plan, training.labels)
        for number, rows in enumerate(shares):
            config = node_configs.device(plan, number)
            batches = node_configs.batches(plan, training, rows)
            journal = Journal()
            node = DeviceNode(config, training, journal, node_configs.network(plan), batches)
            wan = [subscription(root, GlobalModel), subscription(root, Refused, device=config.id)]
            channels = {"wan": channel(f"{config.id}-wan", *wan, will=node.hello(online=False))}
            if config.edge is not None:
                lan = subscription(root, Interval, edge=config.edge, device=config.id)
                channels["lan"] = channel(f"{config.id}-lan", lan)
            start(node, channels, journal, turn=turn)
        for number in range(len(plan.edges)) if plan.method == "emo" else ():
            config = node_configs.edge(plan, number, folder / f"edge-{number}")
            disk = stack.enter_context(DiskCache(config.cache.dir))
            journal = Journal()
            edge = EdgeNode(config, ReplayCache(disk, 1 << 20, 0), journal)
            lan = [subscription(root, kind, edge=config.id) for kind in (ActivationBatch, TapReport)]
            channels = {
                "wan": channel(f"{config.id}-wan", subscription(root, RunState)),
                "lan": channel(f"{config.id}-lan", *lan),
            }
            start(edge, channels, journal)
        config, journal = node_configs.cloud(plan, 60, 120).model_copy(update={"report_s": 5.0}), Journal()
        start_weights = split_network.weights(node_configs.network(plan))
        cloud = CloudNode(config, begin(config, "simulation", start_weights), journal)
        journal.watch(cloud.gauges)
        filters = [subscription(root, kind) for kind in (Status, Update, OverlayWeights)]
        runner = Runner(cloud, {"wan": channel("cloud-wan", *filters)}, journal, report_s=5.0)
        runner.run(stop)
        assert cloud.done
    return [found[number] for number in range(2, plan.rounds + 1)] + [_bits(cloud.state.weights)]


class Other:
    """A program of another vendor, which knows docs/protocol.md and nothing of ours: `heard` are (retained, topic, frame)."""

    def __init__(self, broker, *topics):
        self.heard = []
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)
        self._client.on_connect = lambda client, *_: client.subscribe([(topic, 1) for topic in topics])
        self._client.on_message = lambda *said: self.heard.append((said[2].retain, said[2].topic, said[2].payload))
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()

    def until(self, enough):
        end = time.monotonic() + 20
        while not enough(self.heard) and time.monotonic() < end:
            time.sleep(0.05)
        return self.heard

    def close(self):
        self._client.disconnect()
        self._client.loop_stop()


def fields(data):
    """Kind and fields of a message of one frame: sections 3 and 4."""
    magic, schema, kind, index, count, size, crc, check = struct.unpack("<3sBB11xIIIII", data[:36])
    payload = data[36:]
    assert (magic, schema, index, count) == (b"EMO", 2, 0, 1)
    assert (len(payload), zlib.crc32(payload)) == (size, crc)
    assert zlib.crc32(payload, zlib.crc32(data[:32])) == check
    assert struct.unpack("<I", payload[:4])[0] == len(payload) - 4
    return kind, json.loads(payload[4:].decode("utf-8"))


def _bits(weights):
    return {name: array.tobytes() for name, array in weights.items()}


def names(plan):
    edges = range(len(plan.edges) if plan.method == "emo" else 0)
    devices = {node_configs.device(plan, number).id for number in range(plan.devices)}
    return {"cloud", *(node_configs.edge(plan, number, Path()).id for number in edges), *devices}


def holds(plan, wan, live):
    """What was heard while the fleet ran, as docs/protocol.md has it."""
    assert not any(retained for retained, _, _ in live.heard)
    reports = [(topic, fields(data)) for _, topic, data in live.heard if "/report/" in topic]
    for topic, (kind, (node, role, run, when, edge, doing, trouble, figures, intervals)) in reports:
        assert (kind, topic) == (12, f"{wan}/report/{node}/0")
        assert role == ("cloud" if node == "cloud" else node.partition("-")[0])
        assert run in {"", "simulation"}
        assert abs(when - time.time()) < 200
        assert (edge != "") == (role == "device" and plan.method == "emo")
        assert (doing != "", trouble, len(figures) > 0) == (True, "", True)
        assert set(intervals) <= set("0123456789abcdefghijklmnopqrstuvwxyz.")
    assert all(len(data) - 36 <= 1024 for _, topic, data in live.heard if "/report/" in topic)
    assert {body[0] for _, (_, body) in reports} == names(plan)
    events = [fields(data) for _, topic, data in live.heard if "/event/" in topic]
    of_cloud = [body for kind, body in events if kind == 13 and body[0] == "cloud"]
    numbers = [body[2] for body in of_cloud]
    assert numbers == list(range(1, len(numbers) + 1))
    assert [body[5]["round"] for body in of_cloud if body[4] == "round"] == [1, 2]
    assert {body[0] for _, body in events if body[4] == "trained"} <= names(plan)
    kind, (run, rounds, rows, result) = [fields(data) for _, topic, data in live.heard if "/history/" in topic][-1]
    assert (kind, run, rounds, [row[0] for row in rows], result) == (14, "simulation", 2, [1, 2], {})


@pytest.mark.parametrize("method", ["fl-small", "fl-large", "emo"])
def test_memory_and_mosquitto_find_the_same_global_models(tmp_path, broker, method):
    plan = PLAN.model_copy(update={"method": method})
    training, test = registry.load(plan.data)
    for name in ("fleet", "real"):
        (tmp_path / name).mkdir()
    expected = simulated(plan, tmp_path / "fleet", training, test)
    broker = broker.model_copy(update={"root": f"simulation-{plan.method}"})
    wan = f"{broker.root}/wan"
    other = Other(broker, *(topics := [f"{wan}/report/+/+", f"{wan}/event/+", f"{wan}/history/+"]))
    try:
        assert over_mqtt(plan, tmp_path / "real", training, broker) == expected
    finally:
        other.close()
    assert len({tuple(each.items()) for each in expected}) == plan.rounds
    holds(plan, wan, other)

    late = Other(broker, *topics)  # the fleet is gone; what it said last is here, and no event
    try:
        late.until(lambda heard: len(heard) > len(names(plan)))
    finally:
        late.close()
    assert all(retained for retained, _, _ in late.heard)
    assert {topic.split("/")[2] for _, topic, _ in late.heard} == {"report", "history"}
    assert {fields(data)[1][0] for _, topic, data in late.heard if "/report/" in topic} == names(plan)
