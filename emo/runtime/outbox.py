"""A bounded queue of messages to send: newest version only, droppable ones (wire/topics.py) go first if it is full.

Threads may share one. It counts, by kind of message:

    outbox.superseded.KIND   a newer version took its place
    outbox.dropped.KIND      it was the oldest droppable one, and made room
    outbox.refused.KIND      there was nothing to drop: the new one was not taken
    outbox.full              the last two together, which are also logged
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from emo.journal import Journal
from emo.wire.codec import Packed
from emo.wire.messages import Message
from emo.wire.topics import ROUTES, key

_COST = 1000  # of a message without its arrays


class Outbox:
    def __init__(self, limit: int, journal: Journal, memory: int = 64 << 20) -> None:
        """`limit`: messages held; `memory`: bytes held, exceeded by one message at most, since a larger one could never be
        sent otherwise. `put` never blocks: training must not wait for a network."""
        self._limit, self._journal, self._memory = limit, journal, memory
        self._items: OrderedDict[tuple[str, ...], tuple[Message, int]] = OrderedDict()
        self._change = threading.Condition()
        self._in_hand, self._held = 0, 0

    def put(self, message: Message) -> bool:
        """False if it is full of messages that may not be dropped."""
        name, size = key(message), _size(message)
        with self._change:
            newer = self._pop(name)
            if newer:
                self._journal.count(f"outbox.superseded.{name[0]}")
            self._make_room(size)
            if not newer and (len(self._items) >= self._limit or self._held >= self._memory):
                self._full(f"outbox.refused.{name[0]}")
                return False
            self._add(name, message, size)
        return True

    def put_back(self, message: Message) -> None:
        """Queue again what could not be sent, unless something newer waits."""
        name, size = key(message), _size(message)
        with self._change:
            if name not in self._items:
                self._make_room(size)
                self._add(name, message, size)

    def get(self, timeout: float) -> Message | None:
        """The oldest message, or None after `timeout` seconds. Call `done` when it is sent."""
        with self._change:
            if not self._items:
                self._change.wait(timeout)
            if not self._items:
                return None
            self._in_hand += 1
            _, (message, size) = self._items.popitem(last=False)
            self._held -= size
            return message

    def done(self) -> None:
        with self._change:
            self._in_hand -= 1

    def __len__(self) -> int:
        """Messages that are queued or being sent."""
        with self._change:
            return len(self._items) + self._in_hand

    def _make_room(self, size: int) -> None:
        while len(self._items) >= self._limit or self._held + size > self._memory:
            droppable = (name for name, (held, _) in self._items.items() if ROUTES[type(held)].droppable)
            victim = next(droppable, None)
            if victim is None:
                return
            self._pop(victim)
            self._full(f"outbox.dropped.{victim[0]}")

    def _add(self, name: tuple[str, ...], message: Message, size: int) -> None:
        self._items[name] = (message, size)
        self._held += size
        self._change.notify()

    def _pop(self, name: tuple[str, ...]) -> bool:
        _, size = self._items.pop(name, (None, None))
        self._held -= size or 0
        return size is not None

    def _full(self, counter: str) -> None:
        self._journal.count(counter)
        self._journal.problem("outbox.full", "more to send than the broker takes: the oldest is dropped")


def _size(message: Message) -> int:
    """Bytes that a message takes in memory."""
    size = _COST
    for value in vars(message).values():
        if isinstance(value, Packed):
            size += value.nbytes()
        elif isinstance(value, np.ndarray):
            size += value.nbytes
        elif isinstance(value, Mapping):
            size += sum(item.nbytes if isinstance(item, np.ndarray) else len(str(item)) for item in value.values())
    return size
