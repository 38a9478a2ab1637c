"""GET /api/events: what happens, as server-sent events, to as many readers as there may be.

What is sent is made once, for all. A reader has a queue of bounded bytes: one that does not read loses its connection, and
its browser comes again with the number of the last entry that it has. Source: html.spec.whatwg.org, server-sent events.
"""

import asyncio
import json
from collections import deque
from typing import Any

from starlette.types import Receive, Send

from cloud_app.serving.infer_request import Refused
from cloud_app.watch.event_log import Entry
from cloud_app.watch.watcher import Watcher

READERS = 64
_QUEUE = 1 << 20  # bytes that wait for one reader
_AGAIN = 500  # entries that one who comes again is sent
_EVERY_S = 1.0  # between two looks at what has changed
_CURVES_S = 5.0  # between two of the curves, where no round has closed
_QUIET_S = 15.0


class _Reader:
    def __init__(self) -> None:
        self.waiting: deque[bytes] = deque()
        self.size = 0
        self.some = asyncio.Event()
        self.over = False

    def put(self, data: bytes) -> None:
        if self.size and self.size + len(data) > _QUEUE:
            self.end()
            return
        self.waiting.append(data)
        self.size += len(data)
        self.some.set()

    def end(self) -> None:
        self.over = True
        self.waiting.clear()
        self.some.set()

    async def next(self) -> bytes:
        """Empty: it is over."""
        while not self.waiting and not self.over:
            self.some.clear()
            await self.some.wait()
        if self.over:
            return b""
        data = b"".join(self.waiting)
        self.waiting.clear()
        self.size = 0
        return data


class Stream:
    """`run` is to be running in the server's loop."""

    def __init__(self, watcher: Watcher, readers: int = READERS) -> None:
        self._watcher, self._most = watcher, readers
        self._readers: set[_Reader] = set()
        self._sent = 0  # number of the last entry
        self._summary: dict[str, Any] = {}
        self._nodes: dict[str, dict[str, Any]] = {}
        self._curves = (-1, -1)

    @property
    def readers(self) -> int:
        return len(self._readers)

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        news = asyncio.Event()

        def tell(_: list[Entry]) -> None:
            loop.call_soon_threadsafe(news.set)

        self._watcher.listen(tell)
        looked = curves = quiet = loop.time()
        try:
            while True:
                try:
                    async with asyncio.timeout_at(looked + _EVERY_S):
                        await news.wait()
                except TimeoutError:
                    pass
                news.clear()
                now = loop.time()
                if not self._readers:
                    looked = now
                    continue
                parts = self._entries()
                if now - looked >= _EVERY_S:
                    looked = now
                    parts += self._changes()
                    more, curves = self._of_curves(now, curves)
                    parts += more
                if not parts and now - quiet >= _QUIET_S:
                    parts = [b": still here\n\n"]
                if parts:
                    quiet = now
                    self._send(b"".join(parts))
        finally:
            self.end()

    def end(self) -> None:
        """All streams end, and no other begins."""
        self._most = 0
        for reader in self._readers:
            reader.end()

    def _send(self, data: bytes) -> None:
        for reader in list(self._readers):
            reader.put(data)
            if reader.over:
                self._readers.discard(reader)

    def _entries(self) -> list[bytes]:
        with self._watcher.view() as view:
            entries = view.events.since(self._sent)
        if entries:
            self._sent = entries[-1].number
        return [_entry(entry) for entry in entries]

    def _changes(self) -> list[bytes]:
        summary, nodes = self._shown()
        parts = []
        if _lasting(summary) != _lasting(self._summary):
            parts.append(_event("state", summary))
        changed = [node for name, node in nodes.items() if self._nodes.get(name) is not node]
        if changed:
            parts.append(_event("nodes", changed))
        self._summary, self._nodes = summary, nodes
        return parts

    def _shown(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """The state without the nodes, and these by id."""
        with self._watcher.view() as view:
            lights = view.lights(self._watcher.clock())
            return self._watcher.summary(view, lights), view.shown(lights)

    def _of_curves(self, now: float, before: float) -> tuple[list[bytes], float]:
        """`before`: when the curves were told last, which is returned anew."""
        with self._watcher.view() as view:
            versions, run = (view.version, view.progress.version), view.progress.run
        if versions == self._curves or (versions[1] == self._curves[1] and now - before < _CURVES_S):
            return [], before
        self._curves = versions
        return [_event("history", {"run": run or None})], now

    async def serve(self, send: Send, receive: Receive, since: int | None, headers: list[tuple[bytes, bytes]]) -> None:
        """One reader, until it or we end. `since`: the last entry that it has. Raises Refused (503)."""
        if len(self._readers) >= self._most:
            raise Refused(503, f"{self._most} pages follow what happens already; close one, or ask /api/state")
        reader = _Reader()
        state, shown = self._shown()
        nodes = list(shown.values())
        with self._watcher.view() as view:
            newest = view.events.newest
            # A number that is not yet: of a watcher before this one.
            entries = view.events.since(since)[-_AGAIN:] if since is not None and since <= newest else []
        if not self._readers:
            self._sent, self._summary = newest, state
            self._nodes = shown
        first = [_entry(entry) for entry in entries if entry.number <= self._sent]
        begins = b"".join([*first, _event("state", state), _event("nodes", nodes)])
        self._readers.add(reader)
        gone = asyncio.create_task(_gone(receive, reader))
        try:
            headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), *headers]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": begins, "more_body": True})
            while data := await reader.next():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._readers.discard(reader)
            gone.cancel()


async def _gone(receive: Receive, reader: _Reader) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    reader.end()


def _lasting(summary: dict[str, Any]) -> dict[str, Any]:
    """Without what passes by itself."""
    return {key: value for key, value in summary.items() if key not in {"time", "seconds_left"}}


def _entry(entry: Entry) -> bytes:
    return b"id: %d\n" % entry.number + _event("event", entry.shown())


def _event(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, allow_nan=False)}\n\n".encode()
