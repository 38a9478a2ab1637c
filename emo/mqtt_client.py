"""A paho client set up as EMO needs it: persistent session, small window, a will; not connected yet.

Knows paho's options and why they are not left at their defaults. Knows no message but the will.
"""

import random
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from emo import frame, tls, topics
from emo.config import Broker
from emo.messages import Status

V5, V311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311
# Packets in flight: paho's own default of 20, and its endless queue behind, hold up everything else.
WINDOW = 4
RECEIVE = 20  # unacknowledged packets a broker may have on the way to us
_SESSION_S = 3600


def make(broker: Broker, client_id: str, protocol: MQTTProtocolVersion, will: Status | None) -> paho.Client:
    """A client that `loop_start` connects. The session outlives a reconnect and, for an hour, the process.

    Raises CertificateError when the files of `broker.tls` cannot be used.
    """
    five = protocol == V5
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        protocol=protocol,
        clean_session=None if five else False,
        manual_ack=True,
    )
    if broker.tls is not None:
        client.tls_set_context(tls.Renewing(broker.tls))
    client.max_inflight_messages_set(WINDOW)
    client.max_queued_messages_set(2 * WINDOW)
    # Apart, from the first try on: after a broker's restart the whole fleet comes back. Doubled three times.
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


def session() -> Properties:
    """Of CONNECT in MQTT 5: for how long the broker is to remember us, and how much it may send ahead."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's own gap
    properties.SessionExpiryInterval = _SESSION_S
    properties.ReceiveMaximum = RECEIVE
    return properties
