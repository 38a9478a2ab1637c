"""Asks an MQTT broker which version it speaks, what it takes, and what it does with a few messages. Leaves no session and no
message behind."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import paho.mqtt.client as paho

from emo.config import Broker
from emo.errors import BrokerError, LoginError
from emo.mqtt import client as mqtt_client
from emo.mqtt import connection, tls

_WAIT_S, _QUIET_S = 2.0, 0.4


@dataclass(frozen=True)
class Probe:
    """What CONNACK says (MQTT 5, 3.2.2.3). `max_packet`: bytes of a whole packet, None if it names no limit;
    `max_qos`, `retain` and `wildcards`: what it supports, by the standard's defaults if it says nothing.

    And what was tried. `retain`: it retains messages. `retained_by_wildcard`: and gives them to a filter with a
    wildcard. `window`: packets that it has in flight to a client, of the 20 that this one takes; None if access rules
    let none through, or it was not tried."""

    version: Literal["5", "3.1.1"]
    seconds: float
    max_packet: int | None = None
    max_qos: int = 2
    retain: bool = True
    wildcards: bool = True
    retained_by_wildcard: bool = True
    window: int | None = None


def probe(broker: Broker, timeout_s: float = 5.0, messages: bool = True) -> Probe:
    """Connect with MQTT 5, else with 3.1.1, try a few `messages`, and hang up. Waits for each connection for at most
    `timeout_s` seconds.

    If the client's name comes from a certificate, this ends the connection of the node that it belongs to, which will
    make it anew; no message is tried then, since the session is the node's own. Raises BrokerError: nothing listens
    there, what listens is no MQTT broker, or it refuses us, by TLS or MQTT (LoginError: for who we are); ConfigError if
    `password_file` holds no password.
    """
    if (trouble := tls.trouble(broker, timeout_s)) is not None:
        raise BrokerError(f"the broker at {broker.host}:{broker.port} {trouble}")
    try:
        return _connect(broker, "5", timeout_s, messages)
    except _OtherVersionError:
        return _connect(broker, "3.1.1", timeout_s, messages)


class _OtherVersionError(Exception):
    """The broker does not speak MQTT 5: it says so, hangs up without a word or waits for more, as some 3.1.1 brokers do."""


def _connect(broker: Broker, version: Literal["5", "3.1.1"], timeout_s: float, messages: bool) -> Probe:
    place, own = f"{broker.host}:{broker.port}", broker.certified
    answers: list[tuple[Any, Any]] = []
    client = mqtt_client.bare(
        broker,
        f"{broker.root}-probe-{secrets.token_hex(4)}",
        mqtt_client.V5 if version == "5" else mqtt_client.V311,
        clean=not own,
        secret=mqtt_client.password(broker),
        reconnect_on_failure=False,
    )
    client.on_connect = lambda _client, _data, _flags, reason, properties: answers.append((reason, properties))
    client.connect_timeout = timeout_s
    options: dict[str, Any] = {}
    if version == "5" and (own or messages):  # `own`: it is the node's session, which it must find again
        options = {"clean_start": not own, "properties": mqtt_client.session(kept=own)}
    start = time.monotonic()
    try:
        client.connect(broker.host, broker.port, max(5, int(timeout_s) + 1), **options)
    except (OSError, ValueError) as error:
        raise BrokerError(f"nothing answers at {place}: {error}") from error
    lost = not _turn(client, lambda: bool(answers), timeout_s)
    seconds = time.monotonic() - start
    if not answers:
        client.disconnect()
        client.loop(0.1)  # lets go of the socket
        if version == "5":
            raise _OtherVersionError
        how = "hangs up" if lost else f"says nothing for {timeout_s:g} s"
        raise BrokerError(f"what listens at {place} is no MQTT broker: it {how} when asked for a connection")
    reason, properties = answers[0]
    if reason.is_failure:
        if version == "5" and "protocol version" in str(reason).lower():
            raise _OtherVersionError
        if reason.value in connection.NOT_LET_IN:
            raise LoginError(f"the broker at {place} refuses this client: {reason}")
        raise BrokerError(f"the broker at {place} refuses this client: {reason}")
    answer = Probe(
        version,
        seconds,
        max_packet=getattr(properties, "MaximumPacketSize", None),
        max_qos=getattr(properties, "MaximumQoS", 2),
        retain=bool(getattr(properties, "RetainAvailable", 1)),
        wildcards=bool(getattr(properties, "WildcardSubscriptionAvailable", 1)),
    )
    if messages and not own and answer.max_qos and answer.retain and answer.wildcards:
        answer = _Trial(client, f"{broker.root}/probe/{secrets.token_hex(4)}").run(answer)
    client.disconnect()
    client.loop(0.1)
    return answer


def _turn(client: paho.Client, until: Callable[[], bool], wait_s: float) -> bool:
    """Let `client` work until `until` is true, for at most `wait_s` seconds. False if its connection is lost."""
    end = time.monotonic() + wait_s
    while not until() and time.monotonic() < end:
        try:
            if client.loop(0.05) != paho.MQTT_ERR_SUCCESS:
                return False
        except Exception:  # noqa: BLE001 - bytes of a stranger: whatever paho trips over, it is no broker's answer
            return False
    return True


class _Trial:
    """Sends messages to itself, below a topic that nobody else uses. Access rules may let none of them through, in 3.1.1
    without a word: then nothing is known."""

    def __init__(self, client: paho.Client, topic: str) -> None:
        self._client, self._topic = client, topic
        self._got: list[paho.MQTTMessage] = []
        self._answered = 0
        client.on_message = lambda _client, _data, message: self._got.append(message)
        client.on_publish = client.on_subscribe = client.on_unsubscribe = self._answer

    def _answer(self, *_: Any) -> None:
        self._answered += 1

    def _ask(self, ask: Callable[[], Any]) -> None:
        """`ask`, and wait for the broker's answer."""
        before = self._answered
        ask()
        _turn(self._client, lambda: self._answered > before, _WAIT_S)

    def _retained(self, name: str) -> bool:
        """Whether a subscription to `name` brings what is retained there."""
        self._got.clear()
        self._ask(lambda: self._client.subscribe(name, qos=1))
        _turn(self._client, lambda: bool(self._got), _QUIET_S)
        for message in self._got:
            self._client.ack(message.mid, message.qos)
        return bool(self._got)

    def run(self, answer: Probe) -> Probe:
        one = f"{self._topic}/0"
        self._ask(lambda: self._client.publish(one, b"retained", qos=1, retain=True))
        exact = self._retained(one)
        self._ask(lambda: self._client.unsubscribe(one))
        wildcard = self._retained(f"{self._topic}/+")
        self._got.clear()
        for _ in range(mqtt_client.RECEIVE + 1):
            self._client.publish(f"{self._topic}/1", b"window", qos=1)
        arrived = -1
        while arrived < len(self._got):  # until no more come, all of them unacknowledged
            arrived = len(self._got)
            _turn(self._client, lambda: len(self._got) > mqtt_client.RECEIVE, _QUIET_S)
        self._ask(lambda: self._client.publish(one, b"", qos=1, retain=True))
        if not arrived:
            return answer
        return replace(answer, retain=exact or wildcard, retained_by_wildcard=wildcard, window=arrived)
