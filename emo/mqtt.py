"""The channel over paho-mqtt: MQTT 5, or 3.1.1 where the broker knows no better.

Knows packets, acknowledgements, reconnects. Knows no node. Three threads a channel: paho's network loop
(receives chunks, never blocks), a worker (calls the handler, then acknowledges) and a sender.
"""

import itertools
import logging
import math
import queue
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from emo import frame, topics
from emo.channel import Handler
from emo.config import Broker
from emo.errors import BrokerError, TooLarge, WireError
from emo.journal import Journal
from emo.messages import Message, Status
from emo.outbox import Outbox
from emo.receiver import Receiver

log = logging.getLogger("emo")

_WINDOW = (
    4  # packets in flight: paho's own default of 20, and its endless queue behind, hold up everything else
)
_RECEIVE = 20  # unacknowledged packets a broker may have on the way to us
_HOLD = 8  # of these, how many may wait for the rest of their message; more would block the window for good
_SESSION_S = 3600
_CONNACK_S = 3.0  # after this a broker that took our connection has not understood it


class MqttChannel:
    def __init__(
        self,
        broker: Broker,
        client_id: str,
        filters: list[str],
        journal: Journal,
        will: Status | None = None,
        memory_mib: int = 1024,
    ) -> None:
        """`filters`: topic filters to subscribe to; `will`: published by the broker when we vanish."""
        self.broker, self._id, self._filters, self._journal, self._will = (
            broker,
            client_id,
            filters,
            journal,
            will,
        )
        self._protocol = MQTTProtocolVersion.MQTTv5
        self._outbox = Outbox(broker.queue_messages, journal)
        self._inbox: queue.Queue[tuple[Message, list[int]] | None] = queue.Queue(4 * _RECEIVE)
        self._receiver = Receiver[int](broker.root, journal, memory_mib, _HOLD)
        self._window = threading.Semaphore(_WINDOW)
        self._connected, self._stopping, self._refused = (
            threading.Event(),
            threading.Event(),
            threading.Event(),
        )
        self._numbers = itertools.count(random.SystemRandom().getrandbits(48))
        self._chunk = broker.chunk_kib * 1024
        self._failures, self._next_line = 0, 0.0
        self._opened = math.inf  # when the TCP connection was made that waits for its CONNACK
        self._busy = False
        self._handler: Handler = lambda _message: None
        self._hello: Callable[[], Message | None] = lambda: None

    # -- the port

    def start(self, handler: Handler, hello: Callable[[], Message | None] = lambda: None) -> None:
        """Returns at once; connecting goes on in the background for as long as it takes."""
        self._handler, self._hello = handler, hello
        self._client = self._make_client()
        self._threads = [
            threading.Thread(target=self._work, name=f"{self._id}-worker", daemon=True),
            threading.Thread(target=self._send, name=f"{self._id}-sender", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def publish(self, message: Message) -> bool:
        return self._outbox.put(message)

    def stop(self, drain_s: float = 5.0) -> None:
        until = time.monotonic() + drain_s
        while self._connected.is_set() and time.monotonic() < until and not self.drained():
            time.sleep(0.02)
        self._stopping.set()
        self._client.disconnect()
        self._client.loop_stop()
        self._inbox.put(None)
        for thread in self._threads:
            thread.join(timeout=10)

    def wait_connected(self, timeout: float) -> None:
        """Raises BrokerError when no broker has answered within `timeout` seconds."""
        if not self._connected.wait(timeout):
            raise BrokerError(f"no MQTT broker answers at {self.broker.host}:{self.broker.port}")

    def drained(self) -> bool:
        """True when the broker has everything that was published."""
        # The window is whole again when every packet is acknowledged.
        return not len(self._outbox) and not self._busy and self._window._value == _WINDOW  # noqa: SLF001

    # -- connecting

    def _make_client(self) -> paho.Client:
        five = self._protocol == MQTTProtocolVersion.MQTTv5
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._id,
            protocol=self._protocol,
            clean_session=None if five else False,
            manual_ack=True,
        )
        client.max_inflight_messages_set(_WINDOW)
        client.max_queued_messages_set(2 * _WINDOW)
        client.reconnect_delay_set(1, random.SystemRandom().randint(5, 15))  # apart, after a broker's restart
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_connect_fail = self._on_connect_fail
        client.on_socket_open = self._on_socket_open
        client.on_message, client.on_publish = self._on_message, self._on_publish
        if self._will is not None:
            data = b"".join(frame.split(self._will, bytes(8), self._chunk))
            client.will_set(topics.topic(self.broker.root, self._will), data, qos=1, retain=True)
        properties = None
        if five:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's own gap
            properties.SessionExpiryInterval = _SESSION_S
            properties.ReceiveMaximum = _RECEIVE
        kwargs: dict[str, Any] = {"properties": properties, "clean_start": False} if five else {}
        client.connect_async(self.broker.host, self.broker.port, self.broker.keepalive_s, **kwargs)
        client.loop_start()
        return client

    def _on_connect(self, client: paho.Client, _data: Any, flags: Any, reason: Any, properties: Any) -> None:
        self._opened = math.inf
        if reason.is_failure:
            if self._protocol == MQTTProtocolVersion.MQTTv5 and "protocol" in str(reason).lower():
                self._refused.set()
            self._say(f"refuses this client: {reason}")
            return
        limit = getattr(properties, "MaximumPacketSize", None)
        self._chunk = min(self.broker.chunk_kib * 1024, (limit - 1024) if limit else 1 << 30)
        self._failures, self._next_line = 0, 0.0
        self._receiver.forget_tokens()
        log.debug("%s: connected to %s:%d", self._id, self.broker.host, self.broker.port)
        if not flags.session_present:
            for name in self._filters:
                client.subscribe(name, qos=1)
        hello = self._hello()
        if hello is not None:
            self._outbox.put(hello)
        self._connected.set()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._opened = math.inf
        self._connected.clear()
        if self._stopping.is_set():
            return
        self._journal.count("mqtt.disconnected")
        if "taken over" in str(reason).lower():
            self._say(f"says that another client calls itself {self._id!r}: give each node an id of its own")
        elif reason.is_failure:
            self._say(f"closed the connection ({reason})")
        self._failures += 1
        if self._failures >= 3 and self._protocol == MQTTProtocolVersion.MQTTv5:
            self._refused.set()  # some 3.1.1 brokers hang up without a word

    def _on_connect_fail(self, _client: Any, _data: Any) -> None:
        self._say("does not answer; is it running, is the address right (`emo doctor`)?")

    def _on_socket_open(self, _client: Any, _data: Any, _socket: Any) -> None:
        self._opened = time.monotonic()

    def _say(self, what: str) -> None:
        now = time.monotonic()
        if now >= self._next_line:
            self._next_line = now + 30
            log.warning(
                "%s: broker %s:%d %s. Trying again.", self._id, self.broker.host, self.broker.port, what
            )

    def _fall_back(self) -> None:
        log.info("%s: the broker does not speak MQTT 5, going on with 3.1.1", self._id)
        self._client.disconnect()
        self._client.loop_stop()
        self._refused.clear()  # only now: the callbacks of the old client set it too
        self._protocol = MQTTProtocolVersion.MQTTv311
        self._client = self._make_client()

    # -- receiving

    def _on_message(self, client: paho.Client, _data: Any, packet: paho.MQTTMessage) -> None:
        try:
            token = packet.mid if packet.qos else 0
            message, mids = self._receiver.take(packet.topic, bytes(packet.payload), token)
        except Exception:
            self._journal.count("bugs")  # paho's thread must outlive it
            log.exception("%s: could not read a packet from %s", self._id, packet.topic)
            return
        if message is None:
            self._ack(client, mids)
            return
        try:
            self._inbox.put_nowait((message, mids))
        except queue.Full:  # not acknowledged: the broker keeps it
            self._journal.problem("inbox.full", f"{packet.topic}: more arrives than can be handled")

    def _ack(self, client: paho.Client, mids: list[int]) -> None:
        for mid in mids:
            if mid:
                client.ack(mid, 1)

    def _work(self) -> None:
        while (item := self._inbox.get()) is not None:
            message, mids = item
            try:
                self._handler(message)
            except Exception:
                self._journal.count("bugs")
                log.exception("%s: could not handle a %s", self._id, type(message).__name__)
            self._ack(self._client, mids)

    # -- sending

    def _on_publish(self, _client: Any, _data: Any, _mid: int, reason: Any, _properties: Any) -> None:
        self._window.release()
        if reason.is_failure:
            self._journal.problem(
                "mqtt.publish_refused", f"{self._id}: the broker refused a message: {reason}"
            )

    def _send(self) -> None:
        while not self._stopping.is_set():
            if self._refused.is_set():
                self._fall_back()
            if not self._connected.wait(0.1):
                five = self._protocol == MQTTProtocolVersion.MQTTv5
                # amqtt takes our MQTT 5 for the start of a longer packet, and waits for the rest of it.
                if five and time.monotonic() - self._opened > _CONNACK_S:
                    self._refused.set()
                continue
            message = self._outbox.get(0.1)
            if message is None:
                continue
            self._busy = True
            try:
                self._send_one(message)
            except (TooLarge, WireError) as error:
                self._journal.problem("messages.refused", f"{type(message).__name__} cannot be sent: {error}")
            except Exception:
                self._journal.count("bugs")
                log.exception("%s: could not send a %s", self._id, type(message).__name__)
            self._busy = False

    def _send_one(self, message: Message) -> None:
        if self._chunk < frame.OVERHEAD + 512:
            raise TooLarge(f"the broker takes packets of {self._chunk} bytes only; raise its max_packet_size")
        route = topics.ROUTES[type(message)]
        number = (next(self._numbers) & (2**64 - 1)).to_bytes(8, "little")
        for index, data in enumerate(frame.split(message, number, self._chunk)):
            while not self._window.acquire(timeout=0.2):
                if self._stopping.is_set():
                    return
            name = topics.topic(self.broker.root, message, index)
            self._client.publish(name, data, qos=route.qos, retain=route.retain)
            self._journal.count(f"sent_bytes.{type(message).__name__}", len(data) + len(name))
        self._journal.count(f"sent.{type(message).__name__}")
