"""A broker of our own carries what the tiers send, whichever it is, and nothing of it stays behind."""

import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from links import Hears

from emo.config import Broker, Training
from emo.errors import BrokerError
from emo.journal import Journal
from emo.mqtt import connection
from emo.mqtt.channel import MqttChannel
from emo.mqtt.probe import probe
from emo.wire.codec import Packed, encode
from emo.wire.messages import ActivationBatch, GlobalModel, RunState, Status
from emo.wire.topics import subscription
from testbed.processes import broker as broker_module
from testbed.processes.broker import LocalBroker

KINDS = ["mosquitto", "amqtt"]


@pytest.fixture(params=KINDS)
def broker(request, tmp_path, monkeypatch):
    if request.param == "amqtt":  # it does not answer MQTT 5: what waits for that waits for nothing
        monkeypatch.setattr(connection, "_CONNACK_S", 0.3)
    try:
        local = LocalBroker(tmp_path, prefer=request.param)
        with local:
            yield local
    except BrokerError as error:
        if "not installed" not in str(error):
            raise
        pytest.skip(str(error))


class End:
    """One end of a channel: what it receives lies in a queue."""

    def __init__(self, broker, name, kinds=(), will=None, hello=None):
        filters = [subscription("emo", kind) for kind in kinds]
        self.journal, self.got = Journal(), queue.Queue()
        self.channel = MqttChannel(broker.config, name, filters, self.journal, will)
        self.channel.start(Hears(self.got.put, hello or (lambda: None)))
        self.channel.wait_connected(15)

    def next(self, kind, timeout=15):
        while not isinstance(message := self.got.get(timeout=timeout), kind):
            pass
        return message


@pytest.fixture
def end(broker):
    ends = []

    def make(*args, **kwargs):
        ends.append(End(broker, *args, **kwargs))
        return ends[-1]

    yield make
    for each in ends:
        each.channel.stop()
        assert each.journal.counts["bugs"] == 0


def subscriber(end, name, kind):
    """An end whose subscription stands: it hears a message of its own by one made after it."""
    made = end(name, [kind, RunState], hello=lambda: RunState("run", 1, 1, "training"))
    made.next(RunState)
    return made


def batch(number=0, size=(16, 64, 16, 16)):
    values = np.random.default_rng(number).standard_normal(size).astype(np.float32)
    packed = Packed(encode(values, "fp32"))
    return ActivationBatch("run", "edge-1", "device-01", number, 1, packed, np.arange(size[0], dtype=np.int32))


def model(round_=1):
    weights = {"layer": np.random.default_rng(round_).standard_normal((600, 500)).astype(np.float32)}
    return GlobalModel("run", round_, ("device-01",), Training(), weights)


def test_a_batch_of_1_mib_arrives_equal_in_chunks(broker, end):
    sent = batch()
    assert len(sent.activations.data()) > 3 * 256 * 1024
    receiver = subscriber(end, "edge-1", ActivationBatch)
    sender = end("device-01")
    assert sender.channel.publish(sent)
    got = receiver.next(ActivationBatch)
    assert got.activations.data() == sent.activations.data()
    np.testing.assert_array_equal(got.labels, sent.labels)
    assert (got.device, got.batch, got.version) == ("device-01", 0, 1)


def test_a_late_device_gets_the_retained_global_model_and_only_the_newest(broker, end):
    cloud = end("cloud")
    for number in (1, 2):
        assert cloud.channel.publish(model(number))
        until = time.monotonic() + 10
        while cloud.journal.counts["sent.GlobalModel"] < number and time.monotonic() < until:
            time.sleep(0.02)
    cloud.channel.stop()
    late = end("device-01", [GlobalModel])
    got = late.next(GlobalModel)
    assert (got.round, got.devices) == (2, ("device-01",))
    np.testing.assert_array_equal(got.weights["layer"], model(2).weights["layer"])
    with pytest.raises(queue.Empty):
        late.got.get(timeout=0.3)


def test_many_batches_both_ways_at_once(broker, end):
    """20 MiB through the windows of broker and client, from two senders."""
    receiver = subscriber(end, "edge-1", ActivationBatch)
    senders = [end("device-01"), end("device-02")]
    for number in range(10):
        for sender in senders:
            assert sender.channel.publish(batch(number + 100 * senders.index(sender)))
    seen = {receiver.next(ActivationBatch, timeout=30).batch for _ in range(20)}
    assert seen == {*range(10), *range(100, 110)}


def test_a_node_that_vanishes_is_reported_by_its_will(broker, end):
    watcher = end("cloud", [Status])
    doomed = Status("device-01", "device", online=False)
    code = (
        "import sys, time, threading\n"
        "from emo.config import Broker\nfrom emo.journal import Journal\n"
        "from emo.wire.messages import Status\nfrom emo.mqtt.channel import MqttChannel\n"
        "from emo.runtime.channel import Listener\n"
        "class Here(Listener):\n"
        "    def hello(self):\n"
        "        return Status('device-01', 'device', online=True)\n"
        "gone = Status('device-01', 'device', online=False)\n"
        f"channel = MqttChannel(Broker(port={broker.config.port}), 'device-01', [], Journal(), gone)\n"
        "channel.start(Here())\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            assert watcher.next(Status).online
        finally:
            os.kill(process.pid, signal.SIGKILL)
    assert watcher.next(Status) == doomed


def test_probe_says_what_the_broker_speaks(broker):
    found = probe(broker.config, timeout_s=2)
    assert found.version == ("5" if broker.kind.startswith("mosquitto") else "3.1.1")
    assert found.retain
    assert 0 < found.seconds < 5


def test_probe_reads_the_packet_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(broker_module, "CONFIGURATION", broker_module.CONFIGURATION + "max_packet_size 100000\n")
    if broker_module.mosquitto() is None:
        pytest.skip("Mosquitto is not installed")
    with LocalBroker(tmp_path, prefer="mosquitto") as broker:
        assert probe(broker.config).max_packet == 100000


def test_probe_of_nothing_and_of_strangers():
    with pytest.raises(BrokerError, match=r"nothing answers at 127\.0\.0\.1:"):
        probe(Broker(port=broker_module.free_port()), timeout_s=1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(BrokerError, match=r"says nothing for 0\.3 s"):
            probe(Broker(port=port), timeout_s=0.3)

    def web(server):
        for _ in range(2):  # once for each version
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=web, args=(server,))
        thread.start()
        with pytest.raises(BrokerError, match="no MQTT broker: it hangs up"):
            probe(Broker(port=server.getsockname()[1]), timeout_s=2)
        thread.join()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_stays_behind_even_with_clients_connected(kind, tmp_path, caplog):
    if kind == "mosquitto" and broker_module.mosquitto() is None:
        pytest.skip("Mosquitto is not installed")
    threads = set(threading.enumerate())
    levels = logging.getLogger("amqtt").level
    with pytest.raises(KeyboardInterrupt), LocalBroker(tmp_path, prefer=kind) as broker:  # noqa: PT012
        assert broker.kind.startswith(kind)
        client = End(broker, "device-01", [GlobalModel])
        process = getattr(broker._server, "_process", None)
        raise KeyboardInterrupt
    client.channel.stop(drain_s=0)
    assert set(threading.enumerate()) == threads
    assert process is None or process.poll() is not None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", broker.config.port), timeout=1)
    assert logging.getLogger("amqtt").level == levels
    assert not [record for record in caplog.records if not record.name.startswith("emo")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_port_that_was_taken_meanwhile_is_tried_again(kind, tmp_path, monkeypatch):
    if kind == "mosquitto" and broker_module.mosquitto() is None:
        pytest.skip("Mosquitto is not installed")
    ports = iter([taken := broker_module.free_port(), free := broker_module.free_port()])
    monkeypatch.setattr(broker_module, "free_port", lambda: next(ports))
    with socket.create_server(("127.0.0.1", taken)), LocalBroker(tmp_path, prefer=kind) as broker:
        assert broker.config.port == free


def test_a_broker_that_does_not_start_says_why(tmp_path, monkeypatch):
    if broker_module.mosquitto() is None:
        pytest.skip("Mosquitto is not installed")
    monkeypatch.setattr(broker_module, "CONFIGURATION", broker_module.CONFIGURATION + "no_such_option 1\n")
    with pytest.raises(BrokerError, match=r"mosquitto .* does not start .*no_such_option"):
        LocalBroker(tmp_path, prefer="mosquitto").__enter__()


def test_without_mosquitto_amqtt_takes_over(tmp_path, monkeypatch):
    monkeypatch.setattr(broker_module, "mosquitto", lambda: None)
    with LocalBroker(tmp_path) as broker:
        assert broker.kind.startswith("amqtt ")
    with pytest.raises(BrokerError, match="apt-get install mosquitto"):
        LocalBroker(tmp_path, prefer="mosquitto").__enter__()
