"""A node on a real broker: what the broker forgets, the node says again."""

import threading
import time

from links import Hears

from emo.config import Training
from emo.journal import Journal
from emo.mqtt.channel import MqttChannel
from emo.runtime import runner as module
from emo.runtime.runner import Node, Runner
from emo.wire.messages import GlobalModel, Status
from emo.wire.topics import subscription


class Speaker(Node):
    """Publishes one retained message, once."""

    def __init__(self):
        self._said = False
        self.order = []

    def hello(self, online):
        return Status("cloud", "cloud", online)

    def forgotten(self):
        self.order.append("forgotten")

    def restore(self):
        yield GlobalModel("run", 7, (), Training(), {})

    def handle(self, message, now):
        self.order.append(type(message).__name__)
        yield from ()

    def tick(self, now):
        if not self._said:
            self._said = True
            yield from self.restore()


def retained(broker, name):
    """The global model that a newcomer gets, or None after a while."""
    got, here = [], threading.Event()
    channel = MqttChannel(broker, name, [subscription(broker.root, GlobalModel)], Journal())
    channel.start(Hears(lambda message: (got.append(message), here.set())))
    here.wait(8)
    channel.stop(drain_s=0)
    return got[0] if got else None


def test_a_node_says_again_that_it_is_here(mosquitto, monkeypatch):
    # RabbitMQ gives what it retains to no wildcard: who came first would never be seen.
    monkeypatch.setattr(module, "_HELLO_S", 0.1)
    mosquitto.start()
    journal, stop = Journal(), threading.Event()
    runner = Runner(Speaker(), {"wan": MqttChannel(mosquitto.broker, "speaker", [], journal)}, journal)
    thread = threading.Thread(target=runner.run, args=(stop,))
    thread.start()
    until = time.monotonic() + 20
    while journal.snapshot().get("sent.Status", 0) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    stop.set()
    thread.join()
    assert journal.counts["sent.Status"] > 3  # the last is the goodbye


def test_a_broker_that_has_forgotten_everything_is_told_again(mosquitto):
    mosquitto.start()
    journal = Journal()
    node, filters = Speaker(), [subscription(mosquitto.broker.root, Status)]
    runner = Runner(node, {"wan": MqttChannel(mosquitto.broker, "speaker", filters, journal)}, journal)
    stop = threading.Event()
    thread = threading.Thread(target=runner.run, args=(stop,))
    thread.start()
    try:
        assert retained(mosquitto.broker, "before") is not None
        mosquitto.stop()  # no persistence: sessions and retained messages are gone
        node.order.clear()
        mosquitto.start()
        until = time.monotonic() + 20
        while journal.snapshot().get("sent.Status", 0) < 2:
            assert time.monotonic() < until
            time.sleep(0.05)
        found = retained(mosquitto.broker, "after")
        assert found is not None
        assert found.round == 7
        assert node.order.index("forgotten") == 0  # before anything of the new session
        assert "Status" in node.order
    finally:
        stop.set()
        thread.join()
