"""The receiving half of a channel: from a packet to the listener, and back to its acknowledgement.

Two threads: one brings packets, one (`work`) calls the listener; if that settles, a third acknowledges instead of the
worker (ack_after_sync.py). Counts:

    frames.refused          bytes that are no message of ours                        receiver.py
    messages.abandoned  chunks.late                                                  reassembly.py
    status.held             a node announces itself, or reports, too often: its newest word waits    throttle.py
    events.flood            a node tells of more events than ours ever do: they are dropped
    inbox.superseded.KIND   a newer version came before the older was handled        inbox.py
    inbox.full              reading stopped for too long: the connection is made anew, the broker keeps the rest
"""

import logging
import threading
import time
from collections.abc import Callable

from emo.journal import Journal
from emo.runtime.ack_after_sync import AckAfterSync
from emo.runtime.channel import Listener
from emo.runtime.inbox import Inbox
from emo.throttle import Budget, Newest
from emo.wire import topics
from emo.wire.limits import Limits
from emo.wire.messages import Event, Message, Report, Status
from emo.wire.receiver import Receiver

log = logging.getLogger("emo")

_LOOK_S = 0.25
_MEMORY_MIB = 1024  # for unfinished messages, and as much again for those that wait to be handled
_STATUSES = 20  # of one node at once; then one a second
_EVENTS, _EVENTS_PER_S = 400, 40.0  # of one node, twice what ours tell: unread they cost a fiftieth


class Incoming:
    """A token is what the transport acknowledges a packet by; 0: it needs no acknowledgement."""

    def __init__(self, name: str, root: str, journal: Journal, limits: Limits | None) -> None:
        self._name, self._journal = name, journal
        self._inbox = Inbox(_MEMORY_MIB << 20, journal)
        self._receiver = Receiver[int](root, journal, _MEMORY_MIB, limits=limits)
        self._repeated = tuple(topics.subscription(root, kind).partition("+")[0] for kind in (Status, Report))
        self._newest = Newest(Budget(_STATUSES, 1.0))
        self._told = topics.subscription(root, Event).partition("+")[0]
        self._events = Budget(_EVENTS, _EVENTS_PER_S)
        self._lock = threading.Lock()
        self._after_sync: AckAfterSync | None = None
        self._looked = 0.0

    def begin(self, listener: Listener, acknowledge: Callable[[list[int]], None]) -> None:
        """Before `work`. `acknowledge` is called once a message is handled and settled."""
        self._listener, self._acknowledge = listener, acknowledge
        if listener.settle is not None:
            name = f"{self._name}_settle"
            self._after_sync = AckAfterSync(listener.settle, acknowledge, self._journal, name)

    def packet(self, topic: str, data: bytes, token: int, wait_s: float, retained: bool = False) -> list[int] | None:
        """Tokens to acknowledge now. None if there was no room within `wait_s` seconds: then the connection has to be made
        anew, and what was not acknowledged comes again. `retained`: the broker had kept the packet."""
        if topic.startswith(self._repeated):
            with self._lock:
                held = self._newest.holds(topic, data, time.monotonic())
            if held:
                text = f"{topic}: says more than once a second how it is; its newest word waits"
                self._journal.problem("status.held", text)
                return [token]
        if topic.startswith(self._told):
            with self._lock:
                fits = self._events.takes((topic,), time.monotonic())
            if not fits:
                self._journal.problem("events.flood", f"{topic}: tells of too many events at once; they are dropped")
                return [token]
        message, tokens = self._take(topic, data, token, retained)
        if message is None:
            return tokens
        # Waiting here stops reading, so TCP holds the broker back. Mosquitto 2.0 ignores Receive Maximum once it gets
        # acknowledgements.
        if self._inbox.put(message, tokens, self._receiver.last_size, wait_s):
            return []
        self._journal.problem("inbox.full", f"{topic}: more arrives than can be handled; reconnecting")
        return None

    def reconnected(self) -> None:
        with self._lock:
            self._receiver.forget_tokens()

    def work(self) -> None:
        """Until `close`."""
        while not self._inbox.closed:
            self._look(time.monotonic())
            item = self._inbox.get(_LOOK_S)
            if item is None:
                continue
            self._handle(item[0])
            if self._after_sync is not None:
                self._after_sync.handled(item[1])
            else:
                self._acknowledge(item[1])

    def close(self) -> None:
        self._inbox.close()

    def settled(self) -> None:
        """After `work` has ended."""
        if self._after_sync is not None:
            self._after_sync.close()

    def _take(self, topic: str, data: bytes, token: int, retained: bool = False) -> tuple[Message | None, list[int]]:
        try:
            with self._lock:
                return self._receiver.take(topic, data, token, time.monotonic(), retained)
        except Exception:
            self._journal.count("bugs")  # the transport's thread must go on
            log.exception("%s: could not read a packet from %s", self._name, topic)
            return None, []

    def _look(self, now: float) -> None:
        """What is due although no packet comes."""
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        with self._lock:
            tokens, due = self._receiver.stalled(now), self._newest.due(now)
        self._acknowledge(tokens)
        for topic, data in due:
            message, _ = self._take(topic, data, 0)
            if message is not None:
                self._handle(message)

    def _handle(self, message: Message) -> None:
        try:
            self._listener.handle(message)
        except Exception:
            self._journal.count("bugs")
            log.exception("%s: could not handle a %s", self._name, type(message).__name__)
