"""Tracks a connection to a broker: what to tell the user about it, and how large a packet the broker takes.

Written by paho's thread, read by the sender's.
"""

import logging
import math
import time
from collections.abc import Callable
from typing import Any

from emo.config import Broker
from emo.errors import TooLarge
from emo.wire.frame import OVERHEAD

log = logging.getLogger("emo")

_CONNACK_S, _FLAP_S, _LINE_S = 3.0, 2.0, 30.0
NOT_LET_IN = {0x86, 0x87, 0x8C}  # MQTT 5, 3.2.2.2: bad user name or password, not authorized, bad method
_AROUND = 1024  # what MQTT and the topic put around a frame, at most
_LEAST = OVERHEAD + 512


def login(broker: Broker) -> str:
    """What to do if a broker does not let this node in."""
    if broker.username is not None:
        return "correct username, and password or password_file"
    if broker.certified:
        return "does the broker's fleet.yaml know this id? (docs/security.md)"
    return "it wants to know who this is: set username and password_file (docs/security.md)"


class ConnectionState:
    """`failures`: connections that were lost or refused since the last successful one."""

    def __init__(self, broker: Broker, client_id: str) -> None:
        self._broker, self._id = broker, client_id
        self.failures, self._flaps = 0, 0
        self._limit = self._learned = math.inf  # bytes of a frame: as the broker says; as it turned out
        # `_is_news`: the next connection is news, since it is the first or follows on a complaint.
        self._next_line, self._is_news = 0.0, True
        # When TCP was made, while it waits for CONNACK; when CONNACK came.
        self._opened, self._since = math.inf, -math.inf

    def chunk(self) -> int:
        """Bytes of the largest frame to send. Raises TooLarge if the broker takes next to nothing."""
        chunk = int(min(self._broker.chunk_kib * 1024, self._limit, self._learned))
        if chunk < _LEAST:
            raise TooLarge(f"the broker takes packets of {chunk + _AROUND} bytes only; raise its max_packet_size")
        return chunk

    def opened(self) -> None:
        """There is a TCP connection."""
        self._opened = time.monotonic()

    def unanswered(self) -> bool:
        """True if CONNECT was sent a while ago and nothing has come back."""
        return time.monotonic() - self._opened > _CONNACK_S

    def refused(self, reason: Any) -> None:
        """CONNACK refuses us. `reason`: a code of MQTT 5 with its name."""
        self._opened = math.inf
        remedy = f"; {login(self._broker)}" if reason.value in NOT_LET_IN else ""
        self.say(f"refuses this client: {reason}{remedy}")

    def connected(self, max_packet: int | None) -> None:
        """CONNACK came. `max_packet`: the broker's Maximum Packet Size in bytes, if it names one."""
        self._opened, self.failures, self._since = math.inf, 0, time.monotonic()
        self._limit = max_packet - _AROUND if max_packet else math.inf
        level = logging.INFO if self._is_news else logging.DEBUG
        log.log(level, "%s: connected to %s:%d", self._id, self._broker.host, self._broker.port)
        self._is_news = False

    def disconnected(self, was_connected: bool, reason: object, unsent: bool) -> bool:
        """`was_connected`: CONNACK had come; `unsent`: packets were in flight. True if these must be sent again smaller.

        Not every broker names its limit, and a PUBLISH beyond it ends each new connection: Mosquitto's
        `message_size_limit` is answered with a PUBACK that paho takes for a protocol error. So if connections die
        young with packets in flight, smaller ones are tried until a connection lasts.
        """
        self._opened = math.inf
        self.failures += 1
        if was_connected:
            self._flaps = self._flaps + 1 if time.monotonic() - self._since < _FLAP_S else 0
            if not self._flaps:
                self._learned = math.inf
        smaller = was_connected and unsent and self._flaps > 0 and self._flaps % 2 == 0
        # Mosquitto 2.0 disconnects the older of two clients of one name without a reason code.
        if self._flaps >= 2 or "taken over" in str(reason).lower():
            packets = f"take packets of {min(self._broker.chunk_kib, self._learned / 1024):g} KiB? Then lower chunk_kib"
            self.say(
                f"closes again and again. Does another client call itself {self._id!r}? "
                "Then give each node an id of its own" + (f". Or does it not {packets}" if unsent else ""),
                now=self._flaps == 2,
            )
        elif getattr(reason, "is_failure", False):
            self.say(f"closed the connection ({reason})")
        if smaller:
            present = min(self._broker.chunk_kib * 1024, self._limit, self._learned)
            self._learned = min(present, max(present // 4, 2 * _LEAST))
        return smaller

    def say(self, what: str | Callable[[], str | None], now: bool = False) -> None:
        """Log `what` about the broker, at most twice a minute unless `now`. A function is called only then."""
        if not now and time.monotonic() < self._next_line:
            return
        text = what() if callable(what) else what
        if text:
            self._next_line, self._is_news = time.monotonic() + _LINE_S, True
            log.warning("%s: broker %s:%d %s. Trying again.", self._id, self._broker.host, self._broker.port, text)
