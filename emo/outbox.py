"""A bounded queue of messages to send: newest version only, the droppable go first when it is full.

Knows keys and sizes. Knows no transport; threads may share one.
"""

import threading
from collections import OrderedDict

from emo.channel import droppable, key
from emo.journal import Journal
from emo.messages import Message


class Outbox:
    def __init__(self, limit: int, journal: Journal) -> None:
        """`limit`: messages held. Never blocks the one who puts: training must not wait for a network."""
        self._limit, self._journal = limit, journal
        self._items: OrderedDict[tuple[str, ...], Message] = OrderedDict()
        self._change = threading.Condition()
        self._in_hand = 0

    def put(self, message: Message) -> bool:
        """False when it is full of messages that may not be dropped."""
        name = key(message)
        with self._change:
            if self._items.pop(name, None) is not None:
                self._journal.count(f"outbox.superseded.{name[0]}")
            elif len(self._items) >= self._limit:
                victim = next((k for k, held in self._items.items() if droppable(held)), None)
                self._journal.problem(
                    "outbox.full", "more to send than the broker takes: the oldest is dropped"
                )
                if victim is None:
                    return False
                del self._items[victim]
            self._items[name] = message
            self._change.notify()
        return True

    def put_back(self, message: Message) -> None:
        """For what was taken and could not be sent: it waits again, unless something newer does."""
        with self._change:
            self._items.setdefault(key(message), message)
            self._change.notify()

    def get(self, timeout: float) -> Message | None:
        """The oldest message, or None after `timeout` seconds. Call `done` when it is sent."""
        with self._change:
            if not self._items:
                self._change.wait(timeout)
            if not self._items:
                return None
            self._in_hand += 1
            return self._items.popitem(last=False)[1]

    def done(self) -> None:
        with self._change:
            self._in_hand -= 1

    def __len__(self) -> int:
        """Messages that wait or are being sent."""
        with self._change:
            return len(self._items) + self._in_hand
