"""A paho client set up as EMO needs it: persistent session, small window, a will; not connected yet.

Knows paho's options and why they are not left at their defaults. Knows no message but the will.
"""

import random
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from emo import frame, topics
from emo.config import Broker
from emo.messages import Status

V5, V311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311
# Packets in flight: paho's own default of 20, and its endless queue behind, hold up everything else.
WINDOW = 4
RECEIVE = 20  # unacknowledged packets a broker may have on the way to us
_SESSION_S = 3600


def make(broker: Broker, client_id: str, protocol: MQTTProtocolVersion, will: Status | None) -> paho.Client:
    """A client that `loop_start` connects. The session outlives a reconnect and, for an hour, the process."""
    five = protocol == V5
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        protocol=protocol,
        clean_session=None if five else False,
        manual_ack=True,
    )
    client.max_inflight_messages_set(WINDOW)
    client.max_queued_messages_set(2 * WINDOW)
    client.reconnect_delay_set(1, random.SystemRandom().randint(5, 15))  # apart, after a broker's restart
    if will is not None:
        data = b"".join(frame.split(will, bytes(8), broker.chunk_kib * 1024))
        client.will_set(topics.topic(broker.root, will), data, qos=1, retain=True)
    options: dict[str, Any] = {}
    if five:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's own gap
        properties.SessionExpiryInterval = _SESSION_S
        properties.ReceiveMaximum = RECEIVE
        options = {"properties": properties, "clean_start": False}
    client.connect_async(broker.host, broker.port, broker.keepalive_s, **options)
    return client
