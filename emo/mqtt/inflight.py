"""Tracks packets that a broker has not acknowledged yet: how many there may be, their messages, what has to be sent again.

Its lock is never held while a transport is called: paho calls back with locks of its own held.
"""

import threading
import time
from collections.abc import Callable

from emo.journal import Journal
from emo.wire.messages import Message
from emo.wire.topics import ROUTES, key

_NO_SUBSCRIBER, _FAILURE = 0x10, 0x80  # MQTT 5, 3.4.2.1
_AGAIN_S = 3.0


class Inflight:
    def __init__(self, window: int, journal: Journal) -> None:
        """`window`: how many packets may be unacknowledged at once; may be changed."""
        self.window, self._journal = window, journal
        self._change = threading.Condition()
        self._reserved = 0
        self._messages: dict[int, Message] = {}
        self._early: dict[int, int] = {}  # acknowledged before `sent` gave us the packet's number
        self._again: dict[tuple[str, ...], tuple[float, Message]] = {}

    def reserve(self, give_up: Callable[[], bool]) -> bool:
        """Wait for a place in the window; False if `give_up` becomes true first."""
        with self._change:
            while self._reserved >= self.window:
                self._change.wait(0.1)
                if give_up():
                    return False
            self._reserved += 1
            return True

    def sent(self, number: int, message: Message) -> None:
        """The packet of `message` that a place was reserved for has this number."""
        with self._change:
            reason = self._early.pop(number, None)
            if reason is None:
                self._messages[number] = message
                return
        self._arrived(message, reason)

    def acknowledged(self, number: int, reason: int) -> None:
        """`reason`: MQTT 5's code in PUBACK; 0 under 3.1.1."""
        with self._change:
            message = self._messages.pop(number, None)
            if message is None:
                self._early[number] = reason
                return
        self._arrived(message, reason)

    def due(self) -> list[Message]:
        """Messages that had no subscriber a while ago, to be sent again."""
        now = time.monotonic()
        with self._change:
            due = [name for name, (at, _) in self._again.items() if at <= now]
            return [self._again.pop(name)[1] for name in due]

    def abandon(self) -> list[Message]:
        """The connection is given up: all messages that were in flight."""
        with self._change:
            messages, self._reserved = list(self._messages.values()), 0
            self._messages.clear()
            self._early.clear()
            self._change.notify_all()
        return messages

    def empty(self) -> bool:
        """True if every packet is acknowledged."""
        with self._change:
            return not self._reserved

    def _arrived(self, message: Message, reason: int) -> None:
        name, route = type(message).__name__, ROUTES[type(message)]
        with self._change:
            self._reserved -= 1
            if reason == _NO_SUBSCRIBER and not (route.retain or route.droppable):
                # The broker threw it away; its receiver may be on its way back, say after the broker's restart.
                self._again[key(message)] = (time.monotonic() + _AGAIN_S, message)
            self._change.notify_all()
        if reason == _NO_SUBSCRIBER:
            self._journal.count(f"unheard.{name}")
        elif reason >= _FAILURE:
            self._journal.problem("mqtt.publish_refused", f"the broker refused a {name} (reason {reason:#x})")
