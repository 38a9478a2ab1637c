"""What has arrived and is not handled yet: bounded in bytes, newest version only.

Knows keys and sizes. Knows no transport; one thread puts, one gets. Drops nothing but the older version of the
same thing (`inbox.superseded.KIND`): who puts has to wait.
"""

import threading
import time
from collections import OrderedDict
from typing import Generic, TypeVar

from emo.channel import droppable, key
from emo.journal import Journal
from emo.messages import Message

Token = TypeVar("Token")
_COST = 1000  # of a message beside its bytes


class Inbox(Generic[Token]):
    def __init__(self, limit: int, journal: Journal) -> None:
        """`limit`: bytes that may wait; one message larger than that is taken when nothing else waits."""
        self._limit, self._held, self._journal = limit, 0, journal
        self._items: OrderedDict[tuple[str, ...], tuple[Message, list[Token], int]] = OrderedDict()
        self._change = threading.Condition()
        self._number = 0
        self._closed = False

    def put(self, message: Message, tokens: list[Token], size: int, wait_s: float) -> bool:
        """False when there was no room for `size` bytes within `wait_s` seconds.

        What the run can do without (`channel.droppable`) takes the place of an older version of itself: an edge
        that falls behind would else answer each version only after the device has sent the next.
        """
        until, size = time.monotonic() + wait_s, size + _COST
        with self._change:
            name = key(message)
            if not droppable(message):
                self._number += 1
                name = (str(self._number),)
            while True:
                older = self._items.get(name)  # anew each time: it may have been taken meanwhile
                others = len(self._items) - (older is not None)
                held = self._held - (older[2] if older else 0)
                if not others or held + size <= self._limit or self._closed:
                    break
                if not self._change.wait(until - time.monotonic()) and time.monotonic() >= until:
                    return False
            if older:
                tokens = older[1] + tokens
                self._journal.count(f"inbox.superseded.{name[0]}")
            self._items[name] = (message, tokens, size)
            self._held = held + size
            self._change.notify_all()
        return True

    def get(self) -> tuple[Message, list[Token]] | None:
        """The oldest message, with the tokens to acknowledge; None once it is closed, whatever is left in it."""
        with self._change:
            while not self._items and not self._closed:
                self._change.wait()
            if self._closed:
                return None
            _, (message, tokens, size) = self._items.popitem(last=False)
            self._held -= size
            self._change.notify_all()
            return message, tokens

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()
