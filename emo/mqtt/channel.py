"""The channel over paho-mqtt: MQTT 5, or 3.1.1 if the broker speaks nothing newer.

Three threads a channel: paho's network loop (receives packets), a worker (incoming.py) and a sender. Both ends are bounded
and count what they drop: incoming.py what comes in, and of what goes out

    outbox.superseded.KIND  outbox.dropped.KIND  outbox.refused.KIND  outbox.full    outbox.py
    messages.refused        over its limit, or nothing fits into the broker's packets; what is behind it goes on
    mqtt.publish_refused    the broker refused a packet                              inflight.py
    unheard.KIND            nobody was subscribed: what must not be lost goes again  inflight.py
"""

import itertools
import logging
import random
import threading
import time
from typing import Any

import paho.mqtt.client as paho

from emo.config import Broker
from emo.errors import BrokerError, TooLarge, WireError
from emo.journal import Journal
from emo.mqtt import client as mqtt_client
from emo.mqtt import tls
from emo.mqtt.client import V5, V311, WINDOW
from emo.mqtt.connection import ConnectionState
from emo.mqtt.inflight import Inflight
from emo.runtime.channel import Listener
from emo.runtime.incoming import Incoming
from emo.runtime.outbox import Outbox
from emo.wire import frame, topics
from emo.wire.limits import Limits
from emo.wire.messages import Message, Status

log = logging.getLogger("emo")


class MqttChannel:
    def __init__(
        self,
        broker: Broker,
        client_id: str,
        filters: list[str],
        journal: Journal,
        will: Status | None = None,
        limits: Limits | None = None,
    ) -> None:
        """`filters`: topic filters to subscribe to; `will`: published by the broker if we vanish.
        `limits`: how large a message may be for this node.
        Raises CertificateError or ConfigError if the files of `broker.tls` or its password cannot be used."""
        if broker.tls is not None:
            tls.watch(broker.tls, client_id.rpartition("-")[2], journal)
        self._secret = mqtt_client.password(broker)
        self.broker, self._id, self._filters = broker, client_id, filters
        self._journal, self._will = journal, will
        self._protocol = V5
        self._outbox = Outbox(broker.queue_messages, journal, broker.queue_mib << 20)
        self._incoming = Incoming(client_id, broker.root, journal, limits)
        self._connected, self._stopping = threading.Event(), threading.Event()
        # Make a new client: of the other protocol; of the same.
        self._switch, self._renew = threading.Event(), threading.Event()
        self._numbers = itertools.count(random.SystemRandom().getrandbits(48))
        self._state = ConnectionState(broker, client_id)
        self._client: paho.Client | None = None
        self._threads: list[threading.Thread] = []
        self._inflight = Inflight(WINDOW, journal)
        self._subscribed = False

    # -- the port

    def start(self, listener: Listener) -> None:
        """Returns at once; connecting goes on in the background, for as long as it takes."""
        self._listener = listener
        self._incoming.begin(listener, self._acknowledge)
        self._client = self._make_client()
        for name, run in (("work", self._incoming.work), ("send", self._send)):
            self._threads.append(threading.Thread(target=run, name=f"{self._id}_{name}", daemon=True))
            self._threads[-1].start()

    def publish(self, message: Message) -> bool:
        return self._outbox.put(message)

    def stop(self, drain_s: float = 5.0) -> None:
        began = time.monotonic()
        while not self.drained() and self._client is not None:
            # A connection that is still being made gets a second.
            if time.monotonic() - began > (drain_s if self._connected.is_set() else min(drain_s, 1.0)):
                break
            time.sleep(0.02)
        self._stopping.set()
        self._incoming.close()
        for thread in self._threads:
            thread.join(timeout=10)
        self._incoming.settled()
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()

    def wait_connected(self, timeout: float) -> None:
        """Raises BrokerError if no broker has answered within `timeout` seconds."""
        if not self._connected.wait(timeout):
            raise BrokerError(f"no MQTT broker answers at {self.broker.host}:{self.broker.port}")

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    def drained(self) -> bool:
        """True if the broker has acknowledged everything that was published."""
        return not len(self._outbox) and self._inflight.empty()

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
            self._state.refused(reason)
            return
        self._state.connected(getattr(properties, "MaximumPacketSize", None))
        self._inflight.window = min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW))
        if self._protocol == V5:
            self._switch.clear()
        self._incoming.reconnected()
        # Also if the session was kept: a new process needs the retained messages again.
        if not self._subscribed or not flags.session_present:
            for name in self._filters:
                client.subscribe(name, qos=1)
        if self._subscribed and not flags.session_present:
            self._listener.forgotten()
        self._subscribed = True
        hello = self._listener.hello()
        if hello is not None:
            self._outbox.put(hello)
        self._connected.set()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        was_connected = self._connected.is_set()
        self._connected.clear()
        if self._stopping.is_set():
            return
        self._journal.count("mqtt.disconnected")
        if not was_connected:
            self._state.say(lambda: tls.trouble(self.broker))
        if self._state.disconnected(was_connected, reason, unsent=not self._inflight.empty()):
            self._renew.set()
        # Some 3.1.1 brokers hang up without a word (with TLS that is about a certificate). A broker that was only
        # restarting is to be asked for MQTT 5 again.
        silent = self.broker.tls is None and self._state.failures % 3 == 0
        if silent or (was_connected and self._protocol == V311):
            self._switch.set()

    def _on_connect_fail(self, _client: Any, _data: Any) -> None:
        path = f", with WebSocket at {self.broker.path}" if self.broker.transport == "websockets" else ""
        self._state.say(lambda: tls.trouble(self.broker) or f"does not answer; is it running{path}? (`emo doctor`)")

    def _on_socket_open(self, _client: Any, _data: Any, _socket: Any) -> None:
        self._state.opened()

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
        for message in self._inflight.abandon():
            self._outbox.put_back(message)
        self._client = self._make_client()

    # -- receiving

    def _on_message(self, client: paho.Client, _data: Any, packet: paho.MQTTMessage) -> None:
        # After more than half the keepalive the broker would take us for dead.
        token, wait_s = packet.mid if packet.qos else 0, self.broker.keepalive_s / 2
        data = bytes(packet.payload)
        tokens = self._incoming.packet(packet.topic, data, token, wait_s, packet.retain)
        if tokens is None:
            mqtt_client.cut(client)
        else:
            self._ack(client, tokens)

    def _ack(self, client: paho.Client, tokens: list[int]) -> None:
        for token in tokens:
            if token:
                client.ack(token, 1)

    def _acknowledge(self, tokens: list[int]) -> None:
        if self._client is not None:
            self._ack(self._client, tokens)

    # -- sending

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: Any, _properties: Any) -> None:
        self._inflight.acknowledged(mid, reason.value)

    def _send(self) -> None:
        while not self._stopping.is_set():
            if self._switch.is_set() or self._renew.is_set():
                self._change_client()
            if not self._connected.wait(0.1):
                # amqtt takes our MQTT 5 CONNECT for the start of a longer packet, and waits for the rest of it.
                if self._protocol == V5 and self.broker.tls is None and self._state.unanswered():
                    self._switch.set()
                continue
            for unheard in self._inflight.due():
                self._outbox.put_back(unheard)
            message = self._outbox.get(0.1)
            if message is None:
                continue
            name = type(message).__name__
            try:
                if not self._send_one(message):
                    self._outbox.put_back(message)
            except (TooLarge, WireError) as error:
                self._journal.problem("messages.refused", f"{name} cannot be sent: {error}")
            except Exception:
                self._journal.count("bugs")
                log.exception("%s: could not send a %s", self._id, name)
            self._outbox.done()

    def _send_one(self, message: Message) -> bool:
        """False if it has to be sent again, from the start."""
        route, client = topics.ROUTES[type(message)], self._client
        assert client is not None
        number = (next(self._numbers) & (2**64 - 1)).to_bytes(8, "little")
        for index, data in enumerate(frame.split(message, number, self._state.chunk(), route.limit)):
            if not self._inflight.reserve(self._give_up):
                return False
            name = topics.topic(self.broker.root, message, index)
            info = client.publish(name, data, qos=1, retain=route.retain)
            self._inflight.sent(info.mid, message)
            self._journal.count(f"sent_bytes.{type(message).__name__}", len(data) + len(name))
        self._journal.count(f"sent.{type(message).__name__}")
        return True

    def _give_up(self) -> bool:
        return self._stopping.is_set() or self._switch.is_set() or self._renew.is_set()
