"""Messages that have arrived and are not handled yet: bounded in bytes, newest version only, senders take turns.

One thread puts, one gets. Of droppable kinds (wire/topics.py) a newer version replaces an older (`inbox.superseded.KIND`), and
a sender's oldest message is dropped (`inbox.dropped.KIND`) once the sender holds more than a quarter, or the most of a
full inbox: a device that floods only crowds out itself. Other kinds wait for room.
"""

import threading
import time
from collections import Counter, OrderedDict

from emo.journal import Journal
from emo.wire.messages import GlobalModel, Message
from emo.wire.topics import ROUTES, key

_COST = 1000  # of a message beside its bytes
_SHARE = 4  # a sender's part of the limit is one in so many

Item = tuple[Message, list[int], int]  # message, tokens, bytes


class Inbox:
    def __init__(self, limit: int, journal: Journal) -> None:
        """`limit`: bytes that may wait; one message larger than that is taken when nothing else waits."""
        self._limit, self._journal = limit, journal
        # By sender, the one whose turn it is first; of each sender by key, the oldest first.
        self._items: OrderedDict[str, OrderedDict[tuple[str, ...], Item]] = OrderedDict()
        self._held: Counter[str] = Counter()
        self._change = threading.Condition()
        self._number = 0
        self._closed = False

    def put(self, message: Message, tokens: list[int], size: int, wait_s: float) -> bool:
        """False if there was no room for `size` bytes within `wait_s` seconds.

        A droppable message replaces an older version: else an edge that falls behind would answer each version only
        after the device has sent the next. So does a global model: else a device that falls behind would train one
        closed round after the other. The tokens of what it drives out are acknowledged with its own.
        """
        until, size = time.monotonic() + wait_s, size + _COST
        with self._change:
            sender, name, tokens = _sender(message), key(message), list(tokens)
            lossy = ROUTES[type(message)].droppable
            if not (lossy or isinstance(message, GlobalModel)):
                self._number += 1
                name = (str(self._number),)
            while True:
                mine = self._items.get(sender, OrderedDict())
                older = mine.get(name)  # looked up each time: it may have been taken meanwhile
                more = size - (older[2] if older else 0)
                full = sum(self._held.values()) + more > self._limit
                others = len(mine) - (older is not None) or len(self._items) - (sender in self._items)
                if self._closed or not others:
                    break
                if lossy and self._held[sender] + more > self._limit // _SHARE and self._drop(sender, name, tokens):
                    continue
                if not full:
                    break
                held = self._held + Counter({sender: more})
                if lossy and self._drop(max(held, key=held.__getitem__), name, tokens):
                    continue
                if not self._change.wait(until - time.monotonic()) and time.monotonic() >= until:
                    return False
            if older:
                tokens = older[1] + tokens
                self._journal.count(f"inbox.superseded.{name[0]}")
            self._items.setdefault(sender, mine)[name] = (message, tokens, size)
            self._held[sender] += more
            self._change.notify_all()
        return True

    def get(self, wait_s: float | None = None) -> tuple[Message, list[int]] | None:
        """The oldest message of the sender whose turn it is, with the tokens to acknowledge. None if none comes within
        `wait_s` seconds (without it: waits for ever), and once it is closed, whatever is left in it."""
        with self._change:
            self._change.wait_for(lambda: self._items or self._closed, wait_s)
            if self._closed or not self._items:
                return None
            sender = next(iter(self._items))
            message, tokens, _ = self._take(sender, next(iter(self._items[sender])))
            if sender in self._items:
                self._items.move_to_end(sender)
            self._change.notify_all()
            return message, tokens

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()

    def _drop(self, sender: str, but: tuple[str, ...], tokens: list[int]) -> bool:
        """Drop the oldest droppable message of `sender` other than `but`; its tokens join `tokens`. False if there is none."""
        for name, (message, _, _) in self._items.get(sender, OrderedDict()).items():
            if name != but and ROUTES[type(message)].droppable:
                tokens += self._take(sender, name)[1]
                self._journal.count(f"inbox.dropped.{type(message).__name__}")
                return True
        return False

    def _take(self, sender: str, name: tuple[str, ...]) -> Item:
        item = self._items[sender].pop(name)
        self._held[sender] -= item[2]
        if not self._items[sender]:
            del self._items[sender], self._held[sender]
        return item


def _sender(message: Message) -> str:
    """The device that it comes from or goes to, and who tells an observer something; what else the cloud and the edges send
    is too little to be told apart."""
    fields = vars(message)
    return str(fields.get("device") or (fields.get("node", "") if ROUTES[type(message)].droppable else ""))
