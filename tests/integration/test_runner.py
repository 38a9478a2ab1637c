"""A node on a real broker: what the broker forgets, the node says again."""

import threading
import time

from emo.config import Training
from emo.journal import Journal
from emo.messages import GlobalModel, Status
from emo.mqtt import MqttChannel
from emo.runner import Runner
from emo.topics import subscription


class Speaker:
    """Publishes one retained message, once."""

    done = False

    def __init__(self):
        self._said = False

    def hello(self, online):
        return Status("cloud", "cloud", online)

    def restore(self):
        yield GlobalModel("run", 7, (), Training(), {})

    def handle(self, message, now):
        yield from ()

    def tick(self, now):
        if not self._said:
            self._said = True
            yield from self.restore()


def retained(broker, name):
    """The global model that a newcomer gets, or None after a while."""
    got, here = [], threading.Event()
    channel = MqttChannel(broker, name, [subscription(broker.root, GlobalModel)], Journal())
    channel.start(lambda message: (got.append(message), here.set()))
    here.wait(8)
    channel.stop(drain_s=0)
    return got[0] if got else None


def test_a_broker_that_has_forgotten_everything_is_told_again(mosquitto):
    mosquitto.start()
    journal = Journal()
    runner = Runner(Speaker(), {"wan": MqttChannel(mosquitto.broker, "speaker", [], journal)}, journal)
    stop = threading.Event()
    thread = threading.Thread(target=runner.run, args=(stop,))
    thread.start()
    try:
        assert retained(mosquitto.broker, "before") is not None
        mosquitto.stop()  # no persistence: sessions and retained messages are gone
        mosquitto.start()
        until = time.monotonic() + 20
        while journal.snapshot().get("sent.Status", 0) < 2:
            assert time.monotonic() < until
            time.sleep(0.05)
        found = retained(mosquitto.broker, "after")
        assert found is not None
        assert found.round == 7
    finally:
        stop.set()
        thread.join()
