"""What has arrived and is not handled yet, bounded in bytes.

Knows sizes. Knows no message and no transport.
"""

import threading
import time
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    def __init__(self, limit: int) -> None:
        """`limit`: bytes that may wait; one item larger than that is taken when nothing else waits."""
        self._limit, self._held = limit, 0
        self._items: deque[tuple[T, int]] = deque()
        self._change = threading.Condition()
        self._closed = False

    def put(self, item: T, size: int, wait_s: float) -> bool:
        """False when there was no room for `size` bytes within `wait_s` seconds."""
        until = time.monotonic() + wait_s
        with self._change:
            while self._items and self._held + size > self._limit and not self._closed:
                if not self._change.wait(until - time.monotonic()) and time.monotonic() >= until:
                    return False
            self._items.append((item, size))
            self._held += size
            self._change.notify_all()
        return True

    def get(self) -> T | None:
        """The oldest item; None once it is closed, whatever is left in it."""
        with self._change:
            while not self._items and not self._closed:
                self._change.wait()
            if self._closed:
                return None
            item, size = self._items.popleft()
            self._held -= size
            self._change.notify_all()
            return item

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()
