"""Asks an MQTT broker once what it is: which version it speaks, what it takes.

Knows CONNECT and CONNACK. Sends no message, subscribes to nothing, leaves no session behind.
"""

import secrets
import time
from dataclasses import dataclass
from typing import Any, Literal

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from emo import mqtt_client, tls
from emo.config import Broker
from emo.errors import BrokerError

_VERSIONS = {"5": MQTTProtocolVersion.MQTTv5, "3.1.1": MQTTProtocolVersion.MQTTv311}


@dataclass(frozen=True)
class Probe:
    """What a CONNACK says (MQTT 5, 3.2.2.3). `max_packet`: bytes of a whole packet, None when it names no limit;
    `max_qos`, `retain` and `wildcards`: what it supports, as assumed by the standard where it says nothing."""

    version: Literal["5", "3.1.1"]
    seconds: float
    max_packet: int | None = None
    max_qos: int = 2
    retain: bool = True
    wildcards: bool = True


def probe(broker: Broker, timeout_s: float = 5.0) -> Probe:
    """Connect with MQTT 5, else with 3.1.1, and hang up; each try takes at most `timeout_s` seconds.

    Where a certificate is the client's name this ends the connection of the node that it belongs to, which will make
    it anew. Raises BrokerError: nothing listens there, what listens is no MQTT broker, or it refuses us, by TLS or MQTT.
    """
    if (trouble := tls.trouble(broker, timeout_s)) is not None:
        raise BrokerError(f"the broker at {broker.host}:{broker.port} {trouble}")
    try:
        found = _connect(broker, "5", timeout_s)
    except _OtherVersionError:
        found = None
    return found or _connect(broker, "3.1.1", timeout_s)


class _OtherVersionError(Exception):
    """It does not speak MQTT 5: said so, or hung up without a word, as some 3.1.1 brokers do."""


def _connect(broker: Broker, version: Literal["5", "3.1.1"], timeout_s: float) -> Probe:
    place = f"{broker.host}:{broker.port}"
    answers: list[tuple[Any, Any]] = []
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=f"{broker.root}-probe-{secrets.token_hex(4)}",
        protocol=_VERSIONS[version],
        reconnect_on_failure=False,
        manual_ack=True,
        clean_session=None if version == "5" else broker.tls is None,
    )
    client.on_connect = lambda _client, _data, _flags, reason, properties: answers.append(
        (reason, properties)
    )
    if broker.tls is not None:
        client.tls_set_context(tls.Renewing(broker.tls))
    client.connect_timeout = timeout_s
    options: dict[str, Any] = {}
    if broker.tls is not None and version == "5":  # the session may be the node's own: it must find it again
        options = {"clean_start": False, "properties": mqtt_client.session()}
    start = time.monotonic()
    try:
        client.connect(broker.host, broker.port, max(5, int(timeout_s) + 1), **options)
    except (OSError, ValueError) as error:
        raise BrokerError(f"nothing answers at {place}: {error}") from error
    lost = False
    while not answers and not lost and time.monotonic() - start < timeout_s:
        try:
            lost = client.loop(0.1) != paho.MQTT_ERR_SUCCESS
        except Exception:  # noqa: BLE001 - bytes of a stranger: whatever paho trips over, it is no CONNACK
            lost = True
    seconds = time.monotonic() - start
    client.disconnect()
    client.loop(0.1)  # lets go of the socket
    if not answers:
        if lost and version == "5":
            raise _OtherVersionError
        how = "hangs up" if lost else f"says nothing for {timeout_s:g} s"
        raise BrokerError(f"what listens at {place} is no MQTT broker: it {how} when asked for a connection")
    reason, properties = answers[0]
    if reason.is_failure:
        if version == "5" and "protocol version" in str(reason).lower():
            raise _OtherVersionError
        raise BrokerError(f"the broker at {place} refuses this client: {reason}")
    return Probe(
        version,
        seconds,
        max_packet=getattr(properties, "MaximumPacketSize", None),
        max_qos=getattr(properties, "MaximumQoS", 2),
        retain=bool(getattr(properties, "RetainAvailable", 1)),
        wildcards=bool(getattr(properties, "WildcardSubscriptionAvailable", 1)),
    )
