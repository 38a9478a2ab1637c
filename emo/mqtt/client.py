"""Makes a paho client as EMO needs it: transport, TLS, login, persistent session, small window, a will, how
soon it tries again; not connected yet."""

import os
import random
import socket
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from emo import files
from emo.config import Broker
from emo.errors import ConfigError
from emo.mqtt import tls
from emo.wire import frame, topics
from emo.wire.messages import Status

V5, V311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311
# Packets in flight: paho's default of 20, and its unlimited queue, would hold up everything else.
WINDOW = 4
RECEIVE = 20  # unacknowledged packets a broker may have on the way to us
_PACKET = (1024 + 4) << 10  # the most that Broker.chunk_kib may say, and what MQTT puts around it
_SESSION_S = 3600
_LONGEST = 65535  # bytes of a password: MQTT 5, 3.1.3.6


def password(broker: Broker) -> str | None:
    """The broker's password, if there is one. Raises ConfigError if `password_file` cannot be read, or holds none."""
    if broker.password is not None:
        return broker.password.get_secret_value()
    if broker.password_file is None:
        return None
    held = bytes(files.whole(broker.password_file, _LONGEST, ConfigError)).split(b"\n")[0].rstrip(b"\r")
    try:
        if held:
            return held.decode()
    except UnicodeDecodeError:
        pass
    raise ConfigError(f"password_file {broker.password_file}: its first line is no password in UTF-8")


def bare(
    broker: Broker,
    client_id: str,
    protocol: MQTTProtocolVersion,
    clean: bool,
    secret: str | None,
    **options: Any,
) -> paho.Client:
    """A client for `broker`, with the password `secret`. `clean`: a session of 3.1.1 ends with the connection."""
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        protocol=protocol,
        clean_session=None if protocol == V5 else clean,
        manual_ack=True,
        transport=broker.transport,
        **options,
    )
    if broker.transport == "websockets":
        client.ws_set_options(broker.path)
    if broker.tls is not None:
        client.tls_set_context(tls.RenewingContext(broker.tls))
    if broker.username is not None:
        client.username_pw_set(broker.username, secret)
    return client


def make(
    broker: Broker, client_id: str, protocol: MQTTProtocolVersion, will: Status | None, secret: str | None
) -> paho.Client:
    """A client that `loop_start` connects. The session outlives a reconnect and, for an hour, the process."""
    client, five = bare(broker, client_id, protocol, clean=False, secret=secret), protocol == V5
    client.max_inflight_messages_set(WINDOW)
    client.max_queued_messages_set(2 * WINDOW)
    # Random, since after a broker's restart the whole fleet comes back at once. Doubled three times.
    delay = random.SystemRandom().uniform(0.5, 1.8)
    client.reconnect_delay_set(delay, 8 * delay)  # type: ignore[arg-type]  # seconds; whole ones for no reason
    if will is not None:
        data = b"".join(frame.split(will, bytes(8), broker.chunk_kib * 1024))
        client.will_set(topics.topic(broker.root, will), data, qos=1, retain=True)
    options: dict[str, Any] = {}
    if five:
        options = {"properties": session(), "clean_start": False}
    client.connect_async(broker.host, broker.port, broker.keepalive_s, **options)
    return client


def cut(client: paho.Client) -> None:
    """End the connection of `client`, of whatever transport; it will make another."""
    if (connection := client.socket()) is not None:
        with socket.socket(fileno=os.dup(connection.fileno())) as same:
            same.shutdown(socket.SHUT_RDWR)


def session(kept: bool = True) -> Properties:
    """Properties of CONNECT in MQTT 5: how long the broker remembers us, how many packets it may send unacknowledged, and
    how large."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's own gap
    if kept:
        properties.SessionExpiryInterval = _SESSION_S
    properties.ReceiveMaximum = RECEIVE
    properties.MaximumPacketSize = _PACKET
    return properties
