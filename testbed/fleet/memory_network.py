"""The channel in memory: every message goes through real frames, as over MQTT, in one fixed order.

A client that was away gets only the retained messages when it comes back: a broker's session queue is not modelled.
"""

import contextlib
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator

from emo.errors import TooLarge, WireError
from emo.journal import Journal
from emo.runtime.channel import Listener
from emo.runtime.outbox import Outbox
from emo.wire import frame, topics
from emo.wire.limits import Limits
from emo.wire.messages import Message, Status
from emo.wire.receiver import Receiver, matches

# ruff: noqa: SLF001 - Network and MemoryChannel use each other's private parts

log = logging.getLogger("emo")

_QUEUE = 64  # messages, as Broker.queue_messages has it

# The client that it is for, or None for all that subscribed; topic; bytes; retain.
Packet = tuple["MemoryChannel | None", str, bytes, bool]


class Network:
    """Stands for a broker. `root`, `chunk`: topic prefix and largest packet in bytes."""

    def __init__(self, root: str = "emo", chunk: int = 256 * 1024) -> None:
        self.root, self._chunk = root, chunk
        self._connected: dict[str, MemoryChannel] = {}
        self._taps: list[tuple[str, Callable[[str, bytes], None]]] = []
        self._retained: dict[str, bytes] = {}
        self._queue: deque[Packet] = deque()
        self._change = threading.Condition()  # guards all of the above, never held while a listener runs
        self._numbers = itertools.count(1)

    def pump(self) -> int:
        """Deliver everything that is queued, and what listeners publish meanwhile, on the caller's thread.

        Returns the number of messages that listeners were given.
        """
        handled = 0
        while True:
            with self._change:
                if not self._queue:
                    return handled
                only, name, data, retain = self._queue.popleft()
                if retain:
                    self._retained[name] = data
                targets = [only] if only is not None else list(self._connected.values())
                taps = [] if only is not None else list(self._taps)
            for pattern, take in taps:
                if matches(pattern, name):
                    take(name, data)
            handled += sum(target._take(name, data) for target in targets)

    @contextlib.contextmanager
    def background(self) -> Iterator[None]:
        """Pump on a thread of its own, as a broker would; ends with the block."""
        over = threading.Event()

        def run() -> None:
            while not over.is_set():
                self.pump()
                with self._change:
                    self._change.wait_for(lambda: self._queue or over.is_set())

        thread = threading.Thread(target=run, name="network", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            with self._change:
                self._change.notify_all()
            thread.join()

    def drop(self, client_id: str) -> None:
        """The client vanishes without a word: its will is published. Its own `start` brings it back."""
        with self._change:
            will = self._connected.pop(client_id).will
            if will is not None:
                self._send(will)

    def listen(self, pattern: str, take: Callable[[str, bytes], None]) -> None:
        """From now on `take` gets every packet that is published on a topic that matches `pattern`."""
        with self._change:
            self._taps.append((pattern, take))

    def inject(self, name: str, data: bytes) -> None:
        """Publish any bytes on any topic, as a stranger could."""
        self._enqueue([(None, name, data, False)])

    # -- for MemoryChannel

    def _join(self, channel: "MemoryChannel") -> None:
        with self._change:
            self._connected[channel.client_id] = channel
            self._enqueue([(channel, name, data, False) for name, data in sorted(self._retained.items())])

    def _has(self, channel: "MemoryChannel") -> bool:
        return self._connected.get(channel.client_id) is channel

    def _send(self, message: Message) -> int:
        # Returns bytes as a broker counts them. Split before sending: a message goes whole or not at all.
        number = next(self._numbers).to_bytes(8, "little")
        frames = list(frame.split(message, number, self._chunk, topics.ROUTES[type(message)].limit))
        names = [topics.topic(self.root, message, index) for index in range(len(frames))]
        retain = topics.ROUTES[type(message)].retain
        self._enqueue([(None, name, data, retain) for name, data in zip(names, frames, strict=True)])
        return sum(map(len, frames)) + sum(map(len, names))

    def _enqueue(self, packets: list[Packet]) -> None:
        with self._change:
            self._queue.extend(packets)
            self._change.notify_all()


class MemoryChannel:
    """The port of emo.runtime.channel on a Network: a client, away until its `start`. Its listener runs inside `pump`.
    `limits`: how large a message may be for its node."""

    def __init__(
        self,
        network: Network,
        client_id: str,
        filters: list[str],
        journal: Journal,
        will: Status | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.client_id, self.will = client_id, will
        self._network, self._filters, self._journal = network, filters, journal
        self._outbox = Outbox(_QUEUE, journal)
        self._receiver = Receiver[None](network.root, journal, limits=limits)

    def start(self, listener: Listener) -> None:
        """This network forgets nobody, so `listener.forgotten` is never called."""
        self._listener = listener
        with self._network._change:
            self._network._join(self)
            hello = listener.hello()
            if hello is not None:
                self._outbox.put(hello)
            while (message := self._outbox.get(0)) is not None:
                self._send(message)
                self._outbox.done()

    def publish(self, message: Message) -> bool:
        """Encoded at once while connected, queued in the outbox otherwise."""
        with self._network._change:
            return self._send(message) if self._network._has(self) else self._outbox.put(message)

    def stop(self, drain_s: float = 5.0) -> None:
        """What was published is in the network already and waits for the next `pump`."""
        del drain_s
        with self._network._change:
            self._network._connected.pop(self.client_id, None)

    def _send(self, message: Message) -> bool:
        name = type(message).__name__
        try:
            size = self._network._send(message)
        except (TooLarge, WireError) as error:
            self._journal.problem("messages.refused", f"{name} cannot be sent: {error}")
            return False
        self._journal.count(f"sent_bytes.{name}", size)
        self._journal.count(f"sent.{name}")
        return True

    def _take(self, name: str, data: bytes) -> int:
        if not self._network._has(self) or not any(matches(pattern, name) for pattern in self._filters):
            return 0
        message, _ = self._receiver.take(name, data, None)
        if message is None:
            return 0
        try:
            self._listener.handle(message)
            if self._listener.settle is not None:
                self._listener.settle()
        except Exception:
            self._journal.count("bugs")
            log.exception("%s: could not handle a %s", self.client_id, type(message).__name__)
        return 1
