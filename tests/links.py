"""Two ways between nodes behind one face: the network in memory, and MQTT over a real broker. Chunks are 4 KiB,
so that small arrays already make messages of many packets."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import paho.mqtt.client as paho

from emo.config import Broker
from emo.journal import Journal
from emo.mqtt.channel import MqttChannel
from emo.runtime.channel import Channel, Listener
from emo.wire import frame
from emo.wire.messages import Interval, Message, Status, Update
from emo.wire.topics import ROUTES, subscription
from testbed.fleet.memory_network import MemoryChannel, Network

CHUNK_KIB = 4
_roots = itertools.count()


class Hears(Listener):
    """A listener made of functions."""

    def __init__(
        self,
        handle: Callable[[Message], object],
        hello: Callable[[], Message | None] = lambda: None,
        settle: Callable[[], None] | None = None,
    ) -> None:
        self.handle, self.hello, self.settle = handle, hello, settle


class End(Listener):
    """One end of a link: a channel and what it was given."""

    def __init__(self, name: str, channel: Channel, journal: Journal, up: Callable[[], None]) -> None:
        self.name, self.channel, self.journal, self._up = name, channel, journal, up
        self.got: list[Message] = []
        self.threads: set[int] = set()
        self.on_message: Callable[[Message], None] = lambda _message: None
        self._change = threading.Condition()

    def start(
        self, hello: Callable[[], Message | None] = lambda: None, settle: Callable[[], None] | None = None
    ) -> "End":
        self.hello, self.settle = hello, settle
        self.channel.start(self)
        self._up()
        return self

    def handle(self, message: Message) -> None:
        self.threads.add(threading.get_ident())
        with self._change:
            self.got.append(message)
            self._change.notify_all()
        self.on_message(message)

    def wait(self, count: int, timeout: float = 10) -> list[Message]:
        """The messages so far, when there are `count`."""
        with self._change:
            assert self._change.wait_for(lambda: len(self.got) >= count, timeout), f"{len(self.got)} of {count} came"
            return list(self.got)

    def counted(self, name: str, count: int, timeout: float = 10) -> None:
        until = time.monotonic() + timeout
        while self.journal.snapshot().get(name, 0) < count:
            assert time.monotonic() < until, self.journal.snapshot()
            time.sleep(0.01)


class MemoryLink:
    def __init__(self) -> None:
        self.root, self._network, self._ends = "emo", Network(chunk=CHUNK_KIB * 1024), list[End]()

    def end(self, name: str, filters: list[str], will: Status | None = None) -> End:
        journal = Journal()
        return End(name, MemoryChannel(self._network, name, filters, journal, will), journal, lambda: None)

    def inject(self, topic: str, data: bytes) -> None:
        self._network.inject(topic, data)

    def vanish(self, end: End) -> None:
        self._network.drop(end.name)


class MqttLink:
    def __init__(self, broker: Broker) -> None:
        self.root = f"t{next(_roots)}"
        self.broker = broker.model_copy(update={"root": self.root, "chunk_kib": CHUNK_KIB})
        self._ends: list[End] = []
        self._stranger: paho.Client | None = None

    def end(self, name: str, filters: list[str], will: Status | None = None) -> End:
        journal = Journal()
        channel = MqttChannel(self.broker, f"{self.root}-{name}", filters, journal, will)

        subscribed, connect = threading.Semaphore(0), channel._on_connect

        def on_connect(client: paho.Client, data: Any, flags: Any, *rest: Any) -> None:
            client.on_subscribe = lambda *_args: subscribed.release()
            if flags.session_present and filters:  # the broker still has the filters of before
                subscribed.release(len(filters))
            connect(client, data, flags, *rest)

        def up() -> None:
            channel.wait_connected(10)
            assert all(subscribed.acquire(timeout=10) for _ in filters)

        channel._on_connect = on_connect  # type: ignore[method-assign]  # to know when others may publish

        self._ends.append(End(name, channel, journal, up))
        return self._ends[-1]

    def inject(self, topic: str, data: bytes) -> None:
        if self._stranger is None:
            self._stranger = paho.Client(paho.CallbackAPIVersion.VERSION2)
            self._stranger.connect(self.broker.host, self.broker.port)
            self._stranger.loop_start()
        self._stranger.publish(topic, data, qos=1).wait_for_publish(10)

    def vanish(self, end: End) -> None:
        channel = end.channel
        assert isinstance(channel, MqttChannel)
        channel._stopping.set()
        channel._client.loop_stop()
        channel._client._sock_close()

    def close(self) -> None:
        for end in self._ends:
            with contextlib.suppress(AttributeError):  # never started
                end.channel.stop(drain_s=0)
        if self._stranger is not None:
            self._stranger.disconnect()
            self._stranger.loop_stop()


@contextlib.contextmanager
def memory() -> Iterator[MemoryLink]:
    link = MemoryLink()
    with link._network.background():
        yield link


@contextlib.contextmanager
def mqtt(broker: Broker) -> Iterator[MqttLink]:
    link = MqttLink(broker)
    try:
        yield link
    finally:
        link.close()


def all_filters(link):
    return [subscription(link.root, kind) for kind in ROUTES]


def weights(size, seed=0):
    return {"w": np.random.default_rng(seed).standard_normal(size).astype("<f4")}


def update(device="dev-1", round_=1, size=0, seed=0):
    return Update("run1", device, round_, 10, 0.5, weights(size, seed))


def interval(batch, version=0):
    return Interval("run1", "edge-1", "dev-1", batch, version, 1.0)


def frames_of(message, number=b"stranger"):
    return list(frame.split(message, number, 4096))
