"""SIGKILL to the processes of a fleet, over a real broker: what comes out is what an undisturbed run gives, to the bit."""

import json
import random
import signal
import time

import numpy as np
import pytest
import torch
import yaml
from brokers import Mosquitto
from links import mqtt

from cloud_app.ensemble import run_archive
from cloud_app.rounds.node import CloudNode
from cloud_app.rounds.state import begin
from cloud_app.serving.repository import Repository
from device_app.node import DeviceNode
from device_app.publisher import Publisher
from emo import cli
from emo.config import Broker, CloudConfig, DeviceConfig, Model
from emo.data import registry
from emo.journal import Journal
from emo.models import split_network
from emo.mqtt import client as mqtt_client
from emo.runtime import heartbeat
from emo.wire import codec
from emo.wire.messages import GlobalModel, Interval, OverlayWeights, RunState, Status
from emo.wire.topics import subscription
from testbed.chaos.process import Tier

MODEL = {"name": "cnn", "width": 0.5, "input": [1, 8, 8], "classes": 10}
DEVICES = ("device-0", "device-1", "device-2")
PATIENCE_S = 90


def until(reached, what):
    end = time.monotonic() + PATIENCE_S
    while not (found := reached()):
        assert time.monotonic() < end, what
        time.sleep(0.01)
    return found


def events(folder, name=None):
    path = folder / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return [each for each in found if name in (None, each["event"])]


def tier(folder, name, command, *configs):
    for config in configs:
        (folder / f"{config['id']}.yaml").write_text(yaml.safe_dump(config))
    paths = [str(folder / f"{config['id']}.yaml") for config in configs]
    return Tier(name, folder, [command, "--config", *paths])


def shared(folder, name, broker):
    wan = {"port": broker.port, "root": broker.root, "keepalive_s": 5}
    return {"id": name, "model": MODEL, "state_dir": str(folder / name), "wan": wan}


def cloud_of(folder, broker):
    return {
        **shared(folder, "cloud", broker),
        "rounds": {"rounds": 6, "per_round": 2, "min_devices": 3, "quorum": 1.0, "seed": 5},
        "training": {"lr": 0.05},
        "overlays": {"head": True},
        "export": {"models": str(folder / "models")},
    }


def device_of(folder, broker, name):
    partition = {"devices": len(DEVICES), "index": DEVICES.index(name)}
    return {**shared(folder, name, broker), "partition": partition}


def undisturbed(folder, broker):
    """The weights of the same run, in one process and in memory."""
    settings = CloudConfig.model_validate(cloud_of(folder, broker))
    images, _ = registry.load(settings.data)
    start = split_network.weights(split_network.network(settings.model, 5))
    cloud = CloudNode(settings, begin(settings, "run", start), Journal())
    devices = {
        name: DeviceNode(DeviceConfig.model_validate(device_of(folder, broker, name)), images, Journal())
        for name in DEVICES
    }
    waiting = [device.hello(online=True) for device in devices.values()]
    while waiting:
        for message in cloud.handle(waiting.pop(0), 1.0):
            if isinstance(message, GlobalModel):
                found = [out for name in message.devices for out in devices[name].handle(message, 1.0)]
                waiting += [out for out in found if out is not None]
    assert cloud.state.phase == "overlays"
    return cloud.state.weights


@pytest.fixture
def broker(mosquitto_program, tmp_path):
    made = Mosquitto(mosquitto_program, tmp_path)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def tiers():
    found = []
    yield found
    for each in found:
        each.stop(10)


def test_cloud_devices_and_broker_killed_again_and_again(tmp_path, broker, tiers):
    rng, state = random.Random(11), tmp_path / "cloud"
    cloud = tier(tmp_path, "cloud", "cloud", cloud_of(tmp_path, broker.broker))
    hosts = [tier(tmp_path, name, "device", device_of(tmp_path, broker.broker, name)) for name in DEVICES]
    tiers += [cloud, *hosts]
    for each in tiers:
        each.start()
    for victim in ["cloud", "device", "cloud", "broker", "cloud"]:
        lines = len(events(state))
        until(lambda lines=lines: len(events(state)) > lines + 1, "the run goes on")
        time.sleep(rng.uniform(0, 0.1))
        if events(state, "exporting"):
            break
        if victim == "broker":
            broker._process.kill()
            broker.stop()
            time.sleep(0.5)
            broker.start()
            continue
        each = cloud if victim == "cloud" else rng.choice(hosts)
        each.send(signal.SIGKILL)
        each.wait(10)
        each.start()
    until(lambda: events(state, "exporting"), "the export begins")
    killed = False
    while cloud.status() != 0:
        # When its version is there, and as long as there is anything to go on with.
        if not killed and Repository(tmp_path / "models").versions("emo"):
            killed = True
            cloud.send(signal.SIGKILL)
            cloud.wait(10)
            if not list((state / "run").glob("*.safetensors")):
                break
            cloud.start()
        assert cloud.status() in {None, 0}, cloud.log.read_text()[-2000:]
        time.sleep(0.005)
    record, parts = run_archive.read(state)
    begun = events(state, "begun")[-1]  # one that was killed before its first round has begun nothing
    result = json.loads((state / "result.json").read_text())
    assert record.run == begun["run"] == result["run"]
    assert begun["settings"]["rounds.rounds"] == 6
    assert {json.dumps(each["settings"]) for each in events(state, "resumed")} == {json.dumps(begun["settings"])}
    assert Repository(tmp_path / "models").versions("emo") == [1]
    members = {each["round"]: sorted(each["members"]) for each in events(state, "round")}
    assert sorted(members) == list(range(1, 7))
    assert all(len(each) == 2 for each in members.values())
    files = [str(tmp_path / f"{name}.yaml") for name in DEVICES]
    assert cli.main(["health", "--config", *files, "--connected"]) == 0  # the devices wait for the next run
    assert heartbeat.read(state).about["phase"] == "done"
    torch.set_num_threads(1)
    for name, array in undisturbed(tmp_path, broker.broker).items():
        part, _, rest = name.partition(".")
        assert parts[part][rest].tobytes() == array.tobytes(), name


def test_nodes_come_back_to_a_broker_at_moments_of_their_own():
    clients = [mqtt_client.make(Broker(), f"node-{n}", mqtt_client.V5, None, None) for n in range(20)]
    first = [client._reconnect_min_delay for client in clients]
    assert len(set(first)) == 20
    assert max(first) - min(first) > 0.5
    assert all(0.5 <= delay <= 1.8 for delay in first)
    assert max(client._reconnect_max_delay for client in clients) <= 15  # as cloud_app/rounds/node.py has it


def test_an_edge_killed_while_batches_come_goes_on_where_it_was(tmp_path, broker, tiers):
    rng = np.random.default_rng(0)
    shape = split_network.split_shape(Model.model_validate(MODEL))
    first = [np.abs(rng.standard_normal((16, *shape), np.float32)) for _ in range(12)]
    labels = [rng.integers(0, 10, 16).astype("<i4") for _ in first]
    with mqtt(broker.broker) as link:
        device = link.end("dev-1", [subscription(link.root, Interval, edge="edge-1", device="dev-1")]).start()
        cloud = link.end("cloud", [subscription(link.root, Status), subscription(link.root, OverlayWeights)]).start()
        offers = Publisher("dev-1", "edge-1", "int8-delta")
        offers.begin("run-1")
        device.on_message = offers.answer
        lan = {"port": link.broker.port, "root": link.root, "keepalive_s": 5}
        settings = {
            **shared(tmp_path, "edge-1", link.broker),
            "lan": lan,
            "devices": ["dev-1"],
            "cache": {"dir": str(tmp_path / "cache")},
            "controller": {"policy": "always"},
            "overlay": {"checkpoint_steps": 5, "replay_ratio": 100.0, "patience_s": 0.5},
        }
        edge = tier(tmp_path, "edge-1", "edge", settings)
        tiers.append(edge)
        cloud.channel.publish(RunState("run-1", 1, 9, "training"))
        edge.start()
        until(lambda: events(tmp_path / "edge-1", "run"), "the edge joins the run")

        def offer(version, batches):
            sent = 0
            for batch in batches:
                moved = first[batch] * np.float32(1 + version / 50)
                message = offers.offer(batch, version, moved, labels[batch])
                deltas.append(codec.head(message.activations.data(), 1 << 30).base is not None)
                assert device.channel.publish(message)
                sent += 1
            return sent

        deltas: list[bool] = []
        sent = offer(0, range(12))
        device.wait(sent, PATIENCE_S)
        until((tmp_path / "cache" / "overlay" / "checkpoint.safetensors").exists, "a checkpoint")
        for version in (1, 2):
            sent += offer(version, range(6))
            edge.send(signal.SIGKILL)
            edge.wait(10)
            sent += offer(version, range(6, 12))  # while nobody is there
            edge.start()
            until(lambda n=version: len(events(tmp_path / "edge-1", "resumed")) >= n, "the edge is back")
            # What the dead edge had not answered goes once more, in full: nobody has asked for the rest.
            for _ in range(100):
                open_ = [batch for batch in range(12) if not offers._intervals.answered(batch)]
                if not open_:
                    break
                time.sleep(0.1)
            sent += offer(version + 100 * version, open_)
            until(lambda: all(map(offers._intervals.answered, range(12))), "every batch is answered")
        steps = [each["steps"] for each in events(tmp_path / "edge-1", "resumed")]
        assert all(step > 0 for step in steps)
        assert steps == sorted(steps)
        assert sum(deltas[12:]) > 12  # made against what an earlier process of the edge has stored
        cloud.channel.publish(RunState("run-1", 9, 9, "finishing"))
        (overlay,) = until(lambda: [m for m in cloud.got if isinstance(m, OverlayWeights)], "an overlay")
        assert overlay.steps >= steps[-1]
        edge.stop(20)
        counts = json.loads((tmp_path / "edge-1" / "metrics.json").read_text())
        assert "activations.baseless" not in counts
        assert counts["cache.entries"] == 12
