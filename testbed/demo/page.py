"""The demo's page: `emo watch` beside the fleet, which neither waits for it nor ends with it."""

import threading
import time
import webbrowser
from collections.abc import Callable

from testbed.demo.fleet import Fleet, Interrupted
from testbed.processes.child import serving_at

WATCH = "watch"
_START_S = 20.0


class Page:
    """`say` gets its address, once it answers, or why there is none. `show`: in the browser, too."""

    def __init__(self, fleet: Fleet, say: Callable[[str], None], show: bool) -> None:
        self._fleet, self._say, self._show = fleet, say, show
        self.url = ""

    def start(self, config: str) -> None:
        self._fleet.start(WATCH, "watch", "--config", config, without=self._gone)

    def look(self) -> None:
        if self.url or not self._fleet.runs(WATCH):
            return
        self.url = serving_at(self._fleet.log(WATCH)) or ""
        if self.url:
            self._say(f"page: {self.url}")
            if self._show:  # some browsers return only when they are closed
                threading.Thread(target=self._open, name="browser", daemon=True).start()

    def wait(self, stop: threading.Event) -> None:
        """Until its address is said, or it is clear that it will not be. Raises Interrupted."""
        until = time.monotonic() + _START_S
        while not self.url and self._fleet.runs(WATCH) and time.monotonic() < until:
            self.look()
            if stop.wait(0.05):
                raise Interrupted

    def _gone(self, text: str) -> None:
        self._say(f"no page any more, the demo goes on: {text}")

    def _open(self) -> None:
        if not webbrowser.open(self.url):
            self._say("--open: there is no browser here that can be started")
