"""One seeded plan, simulated and as a fleet over a real broker: the same global model after every round."""

import contextlib
import threading

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
    rounds=3,
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
    fleet = Fleet(plan, scenario.load(None), training, test, 2, folder)
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
    broker = broker.model_copy(update={"root": f"simulation-{plan.method}"})
    root, found, stop = broker.root, {}, threading.Event()

    def channel(name, *filters, will=None):
        return MqttChannel(broker, f"{root}-{name}", list(filters), Journal(), will)

    def start(node, channels, **options):
        runner = Runner(node, channels, Journal(), **options)
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
            node = DeviceNode(config, training, Journal(), node_configs.network(plan), batches)
            wan = [subscription(root, GlobalModel), subscription(root, Refused, device=config.id)]
            channels = {"wan": channel(f"{config.id}-wan", *wan, will=node.hello(online=False))}
            if config.edge is not None:
                lan = subscription(root, Interval, edge=config.edge, device=config.id)
                channels["lan"] = channel(f"{config.id}-lan", lan)
            start(node, channels, turn=turn)
        for number in range(len(plan.edges)) if plan.method == "emo" else ():
            config = node_configs.edge(plan, number, folder / f"edge-{number}")
            disk = stack.enter_context(DiskCache(config.cache.dir))
            edge = EdgeNode(config, ReplayCache(disk, 1 << 20, 0), Journal())
            lan = [subscription(root, kind, edge=config.id) for kind in (ActivationBatch, TapReport)]
            channels = {
                "wan": channel(f"{config.id}-wan", subscription(root, RunState)),
                "lan": channel(f"{config.id}-lan", *lan),
            }
            start(edge, channels)
        config = node_configs.cloud(plan, 60, 120)
        start_weights = split_network.weights(node_configs.network(plan))
        cloud = CloudNode(config, begin(config, "simulation", start_weights), Journal())
        filters = [subscription(root, kind) for kind in (Status, Update, OverlayWeights)]
        runner = Runner(cloud, {"wan": channel("cloud-wan", *filters)}, Journal())
        runner.run(stop)
        assert cloud.done
    return [found[number] for number in range(2, plan.rounds + 1)] + [_bits(cloud.state.weights)]


def _bits(weights):
    return {name: array.tobytes() for name, array in weights.items()}


@pytest.mark.parametrize("method", ["fl-small", "fl-large", "emo"])
def test_memory_and_mosquitto_find_the_same_global_models(tmp_path, broker, method):
    plan = PLAN.model_copy(update={"method": method})
    training, test = registry.load(plan.data)
    for name in ("fleet", "real"):
        (tmp_path / name).mkdir()
    expected = simulated(plan, tmp_path / "fleet", training, test)
    assert over_mqtt(plan, tmp_path / "real", training, broker) == expected
    assert len({tuple(each.items()) for each in expected}) == plan.rounds
