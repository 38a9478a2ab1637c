"""TCP between a node and its broker, which gets worse when told to: cut, silent, slow, late. One thread carries every link."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Self

_PIECE = 16 << 10  # bytes
_AHEAD = 64  # pieces on their way in one direction
_START_S = 10.0


@dataclass(frozen=True)
class LinkState:
    """Of one link, both directions. `refuse`: who connects is hung up on. `silent`: nothing goes through, not even
    an end, and nothing is lost: as when packets are dropped and TCP sends them again later. `rate`: bytes a second.
    `delay_s`: how much later everything arrives."""

    refuse: bool = False
    silent: bool = False
    rate: float | None = None
    delay_s: float = 0.0


CLEAR = LinkState()


class Link:
    """`port`: where it listens on 127.0.0.1. `target`: the broker's port there. Made by `Proxy.link`."""

    def __init__(self, name: str, port: int, target: int, loop: asyncio.AbstractEventLoop) -> None:
        self.name, self.port, self.target = name, port, target
        self.passed = 0  # bytes, both directions
        self._loop, self._link_state = loop, CLEAR
        self._heard = asyncio.Event()  # is set while something may pass
        self._heard.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def set(self, state: LinkState) -> None:
        """From now on; what is open stays open."""
        self._loop.call_soon_threadsafe(self._set, state)

    def cut(self) -> None:
        """Every connection ends, without a word of MQTT."""
        self._loop.call_soon_threadsafe(self._cut)

    # -- on the proxy's thread

    def _set(self, state: LinkState) -> None:
        self._link_state = state
        (self._heard.clear if state.silent else self._heard.set)()

    def _cut(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            try:
                if not self._link_state.refuse:
                    await self._carry(reader, writer)
            finally:
                writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._heard.wait()
        above, below = await asyncio.open_connection("127.0.0.1", self.target)
        ways = [asyncio.ensure_future(work) for work in (*self._way(reader, below), *self._way(above, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            below.transport.abort()

    def _way(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[Coroutine[Any, Any, None], Coroutine[Any, Any, None]]:
        """One direction: what takes, and what gives."""
        pieces = asyncio.Queue[tuple[float, bytes]](_AHEAD)

        async def take() -> None:
            while data := await reader.read(_PIECE):
                await pieces.put((self._loop.time() + self._link_state.delay_s, data))
            await pieces.put((self._loop.time() + self._link_state.delay_s, b""))
            await asyncio.Event().wait()  # `give` says when it is over

        async def give() -> None:
            while True:
                due, data = await pieces.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                await self._heard.wait()
                if not data:
                    return
                writer.write(data)
                await writer.drain()
                self.passed += len(data)
                if self._link_state.rate is not None:
                    await asyncio.sleep(len(data) / self._link_state.rate)

        return take(), give()


class Proxy:
    """`with Proxy() as proxy: link = proxy.link("edge-1", 1883)`; leaves no thread and no socket."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._servers: list[asyncio.Server] = []
        self._links: list[Link] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(_START_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START_S)
        self._loop.close()

    def link(self, name: str, target: int) -> Link:
        """A way to port `target` of this machine, on a free port."""
        listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        link = Link(name, int(listening.getsockname()[1]), target, self._loop)

        async def start() -> asyncio.Server:
            return await asyncio.start_server(link.serve, sock=listening)

        self._servers.append(asyncio.run_coroutine_threadsafe(start(), self._loop).result(_START_S))
        self._links.append(link)
        return link

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
