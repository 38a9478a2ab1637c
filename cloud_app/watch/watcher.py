"""One view for two sides: messages come on the broker's thread, the page's server reads on its own."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cloud_app.watch.event_log import Entry
from cloud_app.watch.node_state import Light
from cloud_app.watch.record import Record
from cloud_app.watch.view import View
from emo import __version__
from emo.runtime.repeating import repeating
from emo.wire.messages import Event, Message

_FLUSH_S = 0.5


class Watcher:
    """`name`: of the observer; `source`: mqtt or record; `broker`: its address, or the folder. `clock`: Unix time; of a record
    its last moment, so that nothing in it grows old. `figures`: the observer's own."""

    def __init__(
        self,
        view: View,
        name: str,
        source: str,
        broker: str,
        record: Record | None = None,
        clock: Callable[[], float] = time.time,
        figures: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self._view, self._record, self.clock, self.figures = view, record, clock, figures
        self._about = {"id": name, "version": __version__, "since": round(time.time(), 1), "source": source}
        self._about["broker"] = broker
        self._lock = threading.Lock()
        self._listeners: list[Callable[[list[Entry]], None]] = []

    def listen(self, tell: Callable[[list[Entry]], None]) -> None:
        """Call `tell` with new entries of the log; on the thread that brings messages, so it must return at once."""
        self._listeners.append(tell)

    def take(self, message: Message) -> None:
        now = round(self.clock(), 3)
        with self._lock:
            entries = self._view.take(message, now)
            if self._record is not None and (entries or not isinstance(message, Event)):  # not what was refused
                self._record.message(message, now, self._view)
        if entries:
            for tell in self._listeners:
                tell(entries)

    def link(self, up: bool) -> None:
        """Whether the broker can be heard; may be called as often as one likes."""
        if up == self._view.connected:
            return
        now = round(self.clock(), 3)
        with self._lock:
            if self._record is not None:
                self._record.link(up, now)
            self._view.link(up, now)

    def served(self, endpoint: Mapping[str, Any]) -> None:
        now = round(self.clock(), 3)
        with self._lock:
            if self._record is not None:
                self._record.served(dict(endpoint), now)
            self._view.served(endpoint, now)

    def flush(self) -> None:
        """Bring what waits to the record's file; on a thread that may wait for the disk."""
        if self._record is None:
            return
        with self._lock:
            lines = self._record.take()
        if self._record.flush(lines):
            with self._lock:
                self._record.turn(self._view, round(self.clock(), 3))

    @contextmanager
    def view(self) -> Iterator[View]:
        """The view, to be read as it stands."""
        with self._lock:
            yield self._view

    # -- as the API has it

    def summary(self, view: View, lights: Mapping[str, tuple[Light, str]]) -> dict[str, Any]:
        """The state without the nodes."""
        return self._of(view, view.summary(self.clock(), lights))

    def state(self, view: View) -> dict[str, Any]:
        return self._of(view, view.state(self.clock()))

    def _of(self, view: View, shown: dict[str, Any]) -> dict[str, Any]:
        watcher = {**self._about, "connected": view.connected, "changed": round(view.changed, 1)}
        return {"time": shown["time"], "watcher": {**watcher, "refused": view.refused}, **shown}


@contextmanager
def keeping(watcher: Watcher) -> Iterator[None]:
    """Flush the record again and again, until the block ends."""
    try:
        with repeating(watcher.flush, _FLUSH_S, "record", patience_s=5):
            yield
    finally:
        watcher.flush()
