"""The channel over paho-mqtt: MQTT 5, or 3.1.1 where the broker knows no better.

Knows packets, acknowledgements, reconnects. Knows no node. Three threads a channel: paho's network loop
(receives packets), a worker (calls the handler, then acknowledges) and a sender; with `settle` a fourth, which
acknowledges in the worker's place (settler.py). Both ends are bounded; what is dropped on the way is counted:

    outbox.superseded.KIND  outbox.dropped.KIND  outbox.refused.KIND  outbox.full    outbox.py
    messages.refused        over its limit, or nothing fits into the broker's packets; what is behind it goes on
    mqtt.publish_refused    the broker refused a packet                              flight.py
    unheard.KIND            nobody was subscribed: what must not be lost goes again  flight.py
    frames.refused          bytes that are no message of ours                        receiver.py
    messages.abandoned  chunks.late                                                  reassembly.py
    inbox.superseded.KIND   a newer version came before the older was handled        inbox.py
    inbox.full              reading stopped for too long: the connection is made anew, the broker keeps the rest
"""

import itertools
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho

from emo import frame, mqtt_client, tls, topics
from emo.channel import Handler
from emo.config import Broker
from emo.errors import BrokerError, TooLarge, WireError
from emo.flight import Flight
from emo.health import Health
from emo.inbox import Inbox
from emo.journal import Journal
from emo.limits import Limits
from emo.messages import Message, Status
from emo.mqtt_client import V5, V311, WINDOW
from emo.outbox import Outbox
from emo.receiver import Receiver
from emo.settler import Settler

log = logging.getLogger("emo")

# Packets that may wait unacknowledged for the rest of their message, of the 20 that a broker may have on the way
# to us: more would block that window for good. Where it keeps fewer, `_unblock` finds out.
_HOLD, _LOOK_S = 8, 0.25


class MqttChannel:
    def __init__(
        self,
        broker: Broker,
        client_id: str,
        filters: list[str],
        journal: Journal,
        will: Status | None = None,
        memory_mib: int = 1024,
        limits: Limits | None = None,
    ) -> None:
        """`filters`: topic filters to subscribe to; `will`: published by the broker when we vanish.
        `memory_mib`: for messages that are unfinished, and as much again for those that wait to be handled.
        `limits`: how large a message may be for the node that this is for.
        Raises CertificateError or ConfigError when the files of `broker.tls` or its password cannot be used."""
        if broker.tls is not None:
            tls.watch(broker.tls, client_id.rpartition("-")[2], journal)
        self._secret = mqtt_client.password(broker)
        self.broker, self._id, self._filters = broker, client_id, filters
        self._journal, self._will = journal, will
        self._protocol = V5
        self._outbox = Outbox(broker.queue_messages, journal, broker.queue_mib << 20)
        self._inbox = Inbox[int](memory_mib << 20, journal)
        self._receiver = Receiver[int](broker.root, journal, memory_mib, _HOLD, limits)
        self._receiving = threading.Lock()
        self._connected, self._stopping = threading.Event(), threading.Event()
        self._switch, self._renew = (
            threading.Event(),
            threading.Event(),
        )  # to the other protocol; the same again
        self._numbers = itertools.count(random.SystemRandom().getrandbits(48))
        self._health = Health(broker, client_id)
        self._handler: Handler = lambda _message: None
        self._hello: Callable[[], Message | None] = lambda: None
        self._lost: Callable[[], None] = lambda: None
        self._settler: Settler[int] | None = None
        self._client: paho.Client | None = None
        self._threads: list[threading.Thread] = []
        self._flight = Flight(WINDOW, journal)
        self._subscribed = False

    # -- the port

    def start(
        self,
        handler: Handler,
        hello: Callable[[], Message | None] = lambda: None,
        lost: Callable[[], None] = lambda: None,
        settle: Callable[[], None] | None = None,
    ) -> None:
        """Returns at once; connecting goes on in the background for as long as it takes."""
        self._handler, self._hello, self._lost = handler, hello, lost
        if settle is not None:
            self._settler = Settler(settle, self._acknowledge, self._journal, f"{self._id}_settle")
        self._client = self._make_client()
        for run in (self._work, self._send):
            self._threads.append(threading.Thread(target=run, name=f"{self._id}{run.__name__}", daemon=True))
            self._threads[-1].start()

    def publish(self, message: Message) -> bool:
        return self._outbox.put(message)

    def stop(self, drain_s: float = 5.0) -> None:
        began = time.monotonic()
        while not self.drained() and self._client is not None:
            # A connection that is being made gets a second.
            if time.monotonic() - began > (drain_s if self._connected.is_set() else min(drain_s, 1.0)):
                break
            time.sleep(0.02)
        self._stopping.set()
        self._inbox.close()
        for thread in self._threads:
            thread.join(timeout=10)
        if self._settler is not None:
            self._settler.close()
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()

    def wait_connected(self, timeout: float) -> None:
        """Raises BrokerError when no broker has answered within `timeout` seconds."""
        if not self._connected.wait(timeout):
            raise BrokerError(f"no MQTT broker answers at {self.broker.host}:{self.broker.port}")

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    def drained(self) -> bool:
        """True when the broker has acknowledged everything that was published."""
        return not len(self._outbox) and self._flight.empty()

    # -- connecting

    def _make_client(self) -> paho.Client:
        client = mqtt_client.make(self.broker, self._id, self._protocol, self._will, self._secret)
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_connect_fail, client.on_socket_open = self._on_connect_fail, self._on_socket_open
        client.on_message, client.on_publish = self._on_message, self._on_publish
        client.loop_start()
        return client

    def _on_connect(self, client: paho.Client, _data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            if self._protocol == V5 and "protocol" in str(reason).lower():
                self._switch.set()
            self._health.refused(reason)
            return
        self._health.connected(getattr(properties, "MaximumPacketSize", None))
        self._flight.window = min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW))
        if self._protocol == V5:
            self._switch.clear()
        with self._receiving:
            self._receiver.forget_tokens()
        # Also to a session that was kept: a process that starts anew needs the retained messages again.
        if not self._subscribed or not flags.session_present:
            for name in self._filters:
                client.subscribe(name, qos=1)
        if self._subscribed and not flags.session_present:
            self._lost()
        self._subscribed = True
        hello = self._hello()
        if hello is not None:
            self._outbox.put(hello)
        self._connected.set()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        was = self._connected.is_set()
        self._connected.clear()
        if self._stopping.is_set():
            return
        self._journal.count("mqtt.disconnected")
        if not was:
            self._health.say(lambda: tls.trouble(self.broker))
        if self._health.disconnected(was, reason, unsent=not self._flight.empty()):
            self._renew.set()
        # Some 3.1.1 brokers hang up without a word (those with TLS: over a certificate); one that was only
        # restarting deserves MQTT 5 again.
        silent = self.broker.tls is None and self._health.failures % 3 == 0
        if silent or (was and self._protocol == V311):
            self._switch.set()

    def _on_connect_fail(self, _client: Any, _data: Any) -> None:
        way = f", with WebSocket at {self.broker.path}" if self.broker.transport == "websockets" else ""
        self._health.say(
            lambda: tls.trouble(self.broker) or f"does not answer; is it running{way}? (`emo doctor`)"
        )

    def _on_socket_open(self, _client: Any, _data: Any, _socket: Any) -> None:
        self._health.opened()

    def _change_client(self) -> None:
        assert self._client is not None
        other = self._switch.is_set()
        self._connected.clear()
        self._client.disconnect()
        self._client.loop_stop()
        self._switch.clear()  # only now: the callbacks of the old client set them too
        self._renew.clear()
        if other:
            self._protocol, self._subscribed = V311 if self._protocol == V5 else V5, False
            log.debug("%s: trying MQTT %s", self._id, "5" if self._protocol == V5 else "3.1.1")
        for message in self._flight.abandon():
            self._outbox.put_back(message)
        self._client = self._make_client()

    # -- receiving

    def _on_message(self, client: paho.Client, _data: Any, packet: paho.MQTTMessage) -> None:
        try:
            token = packet.mid if packet.qos else 0
            with self._receiving:
                message, mids = self._receiver.take(
                    packet.topic, bytes(packet.payload), token, time.monotonic()
                )
        except Exception:
            self._journal.count("bugs")  # paho's thread must outlive it
            log.exception("%s: could not read a packet from %s", self._id, packet.topic)
            return
        if message is None:
            self._ack(client, mids)
            return
        # Waiting here stops the reading: TCP holds the broker back. Mosquitto 2.0 heeds no Receive Maximum once
        # it gets acknowledgements. Longer than half the keepalive, and it would take us for dead.
        if not self._inbox.put(message, mids, self._receiver.last_size, self.broker.keepalive_s / 2):
            self._journal.problem(
                "inbox.full", f"{packet.topic}: more arrives than can be handled; reconnecting"
            )
            mqtt_client.cut(client)  # what was not acknowledged comes again

    def _ack(self, client: paho.Client, mids: list[int]) -> None:
        for mid in mids:
            if mid:
                client.ack(mid, 1)

    def _acknowledge(self, mids: list[int]) -> None:
        if self._client is not None:
            self._ack(self._client, mids)

    def _unblock(self) -> None:
        with self._receiving:
            mids = self._receiver.stalled(time.monotonic())
        self._acknowledge(mids)

    def _work(self) -> None:
        while not self._stopping.is_set():
            item = self._inbox.get(_LOOK_S)
            if item is None:
                self._unblock()
                continue
            message, mids = item
            try:
                self._handler(message)
            except Exception:
                self._journal.count("bugs")
                log.exception("%s: could not handle a %s", self._id, type(message).__name__)
            if self._settler is not None:
                self._settler.handled(mids)
            else:
                self._acknowledge(mids)

    # -- sending

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: Any, _properties: Any) -> None:
        self._flight.acknowledged(mid, reason.value)

    def _send(self) -> None:
        while not self._stopping.is_set():
            if self._switch.is_set() or self._renew.is_set():
                self._change_client()
            if not self._connected.wait(0.1):
                # amqtt takes our MQTT 5 for the start of a longer packet, and waits for the rest of it.
                if self._protocol == V5 and self.broker.tls is None and self._health.unanswered():
                    self._switch.set()
                continue
            for message in self._flight.due():
                self._outbox.put_back(message)
            taken = self._outbox.get(0.1)
            if taken is None:
                continue
            try:
                if not self._send_one(taken):
                    self._outbox.put_back(taken)
            except (TooLarge, WireError) as error:
                self._journal.problem("messages.refused", f"{type(taken).__name__} cannot be sent: {error}")
            except Exception:
                self._journal.count("bugs")
                log.exception("%s: could not send a %s", self._id, type(taken).__name__)
            self._outbox.done()

    def _send_one(self, message: Message) -> bool:
        """False when it has to be sent once more, from the start."""
        route, client = topics.ROUTES[type(message)], self._client
        assert client is not None
        number = (next(self._numbers) & (2**64 - 1)).to_bytes(8, "little")
        for index, data in enumerate(frame.split(message, number, self._health.chunk(), route.limit)):
            if not self._flight.reserve(self._give_up):
                return False
            name = topics.topic(self.broker.root, message, index)
            info = client.publish(name, data, qos=route.qos, retain=route.retain)
            self._flight.sent(info.mid, message)
            self._journal.count(f"sent_bytes.{type(message).__name__}", len(data) + len(name))
        self._journal.count(f"sent.{type(message).__name__}")
        return True

    def _give_up(self) -> bool:
        return self._stopping.is_set() or self._switch.is_set() or self._renew.is_set()
