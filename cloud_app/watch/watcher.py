"""One view for two sides: messages come on the broker's thread, the page's server reads on its own."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from cloud_app.watch.event_log import Entry
from cloud_app.watch.view import View
from emo import __version__
from emo.wire.messages import Message


class Keeper(Protocol):
    """Keeps what is told to the view."""

    def message(self, message: Message, now: float) -> None: ...

    def link(self, up: bool, now: float) -> None: ...


class Watcher:
    """`name`: of the observer; `source`: mqtt or record; `broker`: its address, or the folder. `clock`: Unix time; of a record
    its last moment, so that nothing in it grows old. `figures`: the observer's own."""

    def __init__(
        self,
        view: View,
        name: str,
        source: str,
        broker: str,
        keeper: Keeper | None = None,
        clock: Callable[[], float] = time.time,
        figures: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self._view, self._keeper, self.clock, self.figures = view, keeper, clock, figures
        self._about = {"id": name, "version": __version__, "since": round(time.time(), 1), "source": source}
        self._about["broker"] = broker
        self._lock = threading.Lock()
        self._listeners: list[Callable[[list[Entry]], None]] = []

    def listen(self, tell: Callable[[list[Entry]], None]) -> None:
        """Call `tell` with new entries of the log; on the thread that brings messages, so it must return at once."""
        self._listeners.append(tell)

    def take(self, message: Message) -> None:
        now = self.clock()
        with self._lock:
            if self._keeper is not None:
                self._keeper.message(message, now)
            entries = self._view.take(message, now)
        if entries:
            for tell in self._listeners:
                tell(entries)

    def link(self, up: bool) -> None:
        """Whether the broker can be heard; may be called as often as one likes."""
        if up == self._view.connected:
            return
        now = self.clock()
        with self._lock:
            if self._keeper is not None:
                self._keeper.link(up, now)
            self._view.link(up, now)

    def served(self, endpoint: Mapping[str, Any]) -> None:
        with self._lock:
            self._view.served(endpoint, self.clock())

    @contextmanager
    def view(self) -> Iterator[View]:
        """The view, to be read as it stands."""
        with self._lock:
            yield self._view

    # -- as the API has it

    def summary(self, view: View) -> dict[str, Any]:
        """The state without the nodes."""
        watcher = {**self._about, "connected": view.connected, "changed": round(view.changed, 1)}
        summary = view.summary(self.clock())
        return {"time": summary["time"], "watcher": {**watcher, "refused": view.refused}, **summary}

    def state(self, view: View) -> dict[str, Any]:
        return {**self.summary(view), "nodes": list(view.shown(self.clock()).values())}
