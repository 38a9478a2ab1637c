"""Binds a node to its channels: who calls it, on which thread, and how it all ends. So a node needs neither threads nor
a clock."""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from emo.errors import EmoError
from emo.journal import Journal
from emo.runtime.channel import Channel, Listener
from emo.runtime.reporter import Reporter
from emo.wire.messages import Message, Status
from emo.wire.topics import ROUTES

log = logging.getLogger("emo")

Outgoing = Iterable[Message | None]
_TICK_S, _METRICS_S = 0.05, 5.0
# A node announces itself again: RabbitMQ gives retained messages to no wildcard, and a will may come late.
_HELLO_S = 30.0


class Node(Protocol):
    """Logic of a tier: no socket, no clock. A subclass says what it does; what has a default here may be left out.

    Iterables are drawn one item at a time: a message is on its way before the next step of the same method runs, and
    None is a point where it may be interrupted.
    """

    work: Callable[[float], Outgoing] | None = None
    """A method that is called over and over with the time, on a thread of its own; yields nothing when idle."""
    settle: Callable[[], None] | None = None
    """A method that makes what the LAN has brought last; the broker is told after that."""

    @property
    def done(self) -> bool:
        """True when there is nothing left to do."""
        return False

    def hello(self, online: bool) -> Status:
        """What announces the node; with online False, what says goodbye."""

    def words(self) -> Mapping[str, str]:
        """For its reports to observers (reporter.py): run, edge, doing, trouble, intervals, as far as there are any. Must return
        at once, whatever the node is doing."""
        return {}

    def handle(self, message: Message, now: float) -> Outgoing:
        """React to a message. `now`: seconds of a monotonic clock. May be called by one thread a channel."""

    def tick(self, now: float) -> Outgoing:
        """Called every 50 ms."""
        del now
        return ()

    def forgotten(self) -> None:
        """The broker has forgotten everything: called before anything that it brings is handled, on a thread that must
        not wait."""
        return

    def restore(self) -> Outgoing:
        """What has to be said again to a broker that has forgotten everything."""
        return ()


def stop_on(stop: threading.Event, *signals: int) -> None:
    """Set `stop` when one of `signals` comes. From a thread of its own: a signal may interrupt the very `stop.wait`
    whose lock `set` needs, and on one thread that is a deadlock."""

    def handle(_number: int, _frame: object) -> None:
        threading.Thread(target=stop.set, daemon=True).start()

    for number in signals:
        signal.signal(number, handle)


class Runner(Listener):
    """Runs one node; itself the listener of the WAN."""

    def __init__(
        self,
        node: Node,
        channels: Mapping[str, Channel],
        journal: Journal,
        turn: threading.Semaphore | None = None,
        turned: Callable[[], None] = lambda: None,
        report_s: float | None = None,
    ) -> None:
        """`turn`: held while a WAN message is handled (a device's training), if many share a machine's cores.
        `turned`: called whenever the main loop has turned (heartbeat.py). `report_s`: seconds between two reports to
        observers; None: they are told nothing."""
        self._node, self._channels, self._journal = node, channels, journal
        self._turn, self._turned = turn, turned
        self._reporter: Reporter | None = None
        if report_s is not None:
            me = node.hello(online=True)
            self._reporter = Reporter(me.node, me.role, journal, node.words, report_s)
        self._stop, self._forgotten = threading.Event(), threading.Event()

    def run(self, stop: threading.Event, finish: Callable[[], Outgoing] = tuple) -> None:
        """Until `stop` is set or the node is done; then it is to `finish`, still connected. Leaves no thread and no
        connection."""
        for link, channel in self._channels.items():
            channel.start(self if link == "wan" else _Lan(self, self._node.settle))
        worker = threading.Thread(target=self._train, name="training", daemon=True)
        if self._node.work is not None:
            worker.start()
        written, greeted = 0.0, time.monotonic()
        try:
            while not stop.is_set() and not self._node.done:
                now = time.monotonic()
                self._turned()
                self._publish(self._node.tick(now))
                if self._forgotten.is_set():
                    self._forgotten.clear()
                    self._publish(self._node.restore())
                self._journal.catch_up()
                self._tell(now)
                if now - written > _METRICS_S:
                    self._journal.write()
                    written = now
                if now - greeted > _HELLO_S:
                    self._channels["wan"].publish(self._node.hello(online=True))
                    greeted = now
                stop.wait(_TICK_S)
            for message in finish() if self._node.done else ():
                self._publish([message])
                self._tell(time.monotonic())
        finally:
            self._stop.set()
            if worker.is_alive():
                worker.join(timeout=10)
            self._tell(time.monotonic(), last=True)
            self._channels["wan"].publish(self._node.hello(online=False))
            for channel in self._channels.values():
                channel.stop()
            self._journal.write()

    def hello(self) -> Status:
        return self._node.hello(online=True)

    def forgotten(self) -> None:
        self._node.forgotten()
        self._forgotten.set()

    def handle(self, message: Message) -> None:
        turn = self._turn if ROUTES[type(message)].link == "wan" else None
        with turn or contextlib.nullcontext():
            if self._stop.is_set():
                return
            try:
                self._publish(self._node.handle(message, time.monotonic()))
            except EmoError as error:
                self._journal.problem(f"refused.{type(message).__name__}", str(error))

    def _tell(self, now: float, *, last: bool = False) -> None:
        for message in self._reporter.due(now, last=last) if self._reporter else ():
            self._channels["wan"].publish(message)

    def _train(self) -> None:
        assert self._node.work is not None
        while not self._stop.is_set():
            try:
                if not self._publish(self._node.work(time.monotonic())):
                    self._stop.wait(_TICK_S)
            except EmoError as error:
                self._journal.problem("training.refused", str(error))
                self._stop.wait(1.0)
            except Exception:
                self._journal.count("bugs")
                log.exception("a training step failed")
                self._stop.wait(1.0)

    def _publish(self, messages: Outgoing) -> bool:
        """Draw and send, until it is time to stop. False if there was nothing to draw."""
        drawn = False
        for message in messages:
            drawn = True
            if message is not None and (channel := self._channels.get(ROUTES[type(message)].link)):
                channel.publish(message)
            if self._stop.is_set():
                break
        return drawn


class _Lan(Listener):
    """Listens to the LAN, where a node neither announces itself nor retains anything."""

    def __init__(self, wan: Listener, settle: Callable[[], None] | None) -> None:
        self._wan, self.settle = wan, settle

    def handle(self, message: Message) -> None:
        self._wan.handle(message)
