"""What has arrived and is not handled yet: bounded in bytes, newest version only.

Knows keys and sizes. Knows no transport; one thread puts, one gets.
"""

import threading
import time
from collections import OrderedDict
from typing import Generic, TypeVar

from emo.channel import droppable, key
from emo.journal import Journal
from emo.messages import Message

Token = TypeVar("Token")


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
        until = time.monotonic() + wait_s
        with self._change:
            name = key(message)
            if not droppable(message):
                self._number += 1
                name = (str(self._number),)
            elif name in self._items:
                _, older, bytes_ = self._items[name]
                self._items[name] = (message, older + tokens, size)
                self._held += size - bytes_
                self._journal.count(f"inbox.superseded.{name[0]}")
                return True
            while self._items and self._held + size > self._limit and not self._closed:
                if not self._change.wait(until - time.monotonic()) and time.monotonic() >= until:
                    return False
            self._items[name] = (message, tokens, size)
            self._held += size
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
