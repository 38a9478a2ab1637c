"""Bounds HTTP connections: their number, the size of a request's head, how slowly a client may send and read. uvicorn
parses HTTP and calls the application; it bounds none of these.

When there are too many connections, the client with most of them loses its oldest whose request is not being answered just
now, so that a greedy client harms itself only.
"""

import asyncio
import errno
import resource
import socket
from asyncio import AbstractEventLoop, BaseTransport, TimerHandle, Transport
from collections import Counter
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from cloud_app.serving.fair_share import Shares, client

HEAD_SECONDS = 20.0  # for TLS, and for a request's line and fields; uvicorn waits for ever
WRITE_SECONDS = 10.0  # in which a client has to take WRITE_LEAST bytes of its answer
WRITE_LEAST = 64 << 10
MAX_HEAD = 64 << 10  # bytes of a request that are no body
MAX_FIELDS = 128
MAX_PIPELINED = 16
MAX_CONNECTIONS = 2048
_OTHER_FILES = 128
_AT_ONCE = 1024  # connections taken in one turn of the loop, or the system's queue of them overflows
_OF_ONE = 16  # of one client, where there are too many and it has most: more are closed for little
_COUNTS = hasattr(AutoHTTPProtocol, "on_body")  # httptools; h11 has bounds of its own for heads and pipelines
_TOO_LARGE = (
    b'{"error": "the head of a request may have %d bytes and %d fields, and %d requests may come before the first is '
    b'answered"}' % (MAX_HEAD, MAX_FIELDS, MAX_PIPELINED)
)


def most_connections() -> int:
    """How many this process may have open, with files to spare."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if files == resource.RLIM_INFINITY else max(16, min(MAX_CONNECTIONS, files - _OTHER_FILES))


class _Joined:
    """A transport that sends what is written in one turn of the loop together: uvicorn writes a head, then a body,
    and each would be a call of the system and a packet of its own."""

    def __init__(self, transport: Transport, loop: AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts and not self._transport.is_closing():  # it may have been shown out meanwhile
            self._transport.write(b"".join(self._parts))
        self._parts.clear()


class Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # one of two classes, by what is installed
    """`who`: its client."""

    def __init__(self, who: str, shares: Shares, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.who = who
        self.opening: asyncio.Task[None] | None = None
        self._shares = shares
        self._head: TimerHandle | None = None
        self._reading: TimerHandle | None = None
        self._extra = 0  # bytes of this request that are no body
        self._unsent = 0

    @property
    def busy(self) -> bool:
        """Its request is here, and being answered."""
        return self._under_way() and not self.cycle.more_body

    def leave(self) -> None:
        if self.transport is None:
            assert self.opening is not None
            self.opening.cancel()
        else:
            self.transport.abort()

    def _under_way(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # -- uvicorn's, and what it is called by

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(_Joined(cast("Transport", transport), self.loop))
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        self._has_read()
        self._shares.connections.free(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._extra += len(data) if _COUNTS else 0
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._extra > MAX_HEAD or len(self.headers or ()) > MAX_FIELDS:
            self.send_400_response("")
        elif self._under_way():
            self._head_is_here()
        elif self._head is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        if self._extra > MAX_HEAD:  # of which some may be body
            self._extra = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if self._extra > MAX_HEAD or len(self.headers) > MAX_FIELDS or len(self.pipeline) >= MAX_PIPELINED:
            self._extra = MAX_HEAD + 1
            raise ValueError("too large")  # the parser answers with send_400_response
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._extra = max(0, self._extra - len(body) - 32)  # what chunks are written with is in proportion to them
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._extra = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self._under_way():
            self.transport.abort()  # an answer would be taken for that to another request
        elif self._extra > MAX_HEAD:
            head = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
            self.transport.write(head + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(_TOO_LARGE))
            self.transport.write(_TOO_LARGE)
            self.transport.close()
        else:
            super().send_400_response(msg)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        self._shares.held.take(self, self._unsent)
        self._reading = self.loop.call_later(WRITE_SECONDS, self._is_reading)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._has_read()

    # -- time

    def _is_reading(self) -> None:
        left = self.transport.get_write_buffer_size()
        if left > self._unsent - WRITE_LEAST:
            self.transport.abort()
        else:
            self._unsent = left
            self._reading = self.loop.call_later(WRITE_SECONDS, self._is_reading)

    def _has_read(self) -> None:
        self._shares.held.free(self)
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _await_head(self) -> None:
        self._head = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _head_is_here(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


class Server(uvicorn.Server):
    """Takes connections from `listener` itself, so that they are counted before they cost more than a descriptor."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, shares: Shares) -> None:
        super().__init__(config)
        self._listener = listener
        self._shares = shares
        self._opening = set[asyncio.Task[None]]()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - uvicorn's
        await self.lifespan.startup()
        self._listener.setblocking(False)
        self.servers = [cast("asyncio.Server", self)]
        self._open()
        self.started = True

    def close(self) -> None:
        """No more connections; of those that there are `shutdown` takes care."""
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        for each in self._opening:
            each.cancel()

    async def wait_closed(self) -> None:
        """For uvicorn, which has waited for all connections."""

    def _open(self) -> None:
        if self._listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        taken = Counter[str]()
        for _ in range(_AT_ONCE):
            try:
                sock, address = self._listener.accept()
            except OSError as error:
                if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                    loop.remove_reader(self._listener)  # or it would be called again at once
                    loop.call_later(0.1, self._open)
                return
            who = client(address[0])
            taken[who] += 1
            if taken[who] > _OF_ONE and self._shares.connections.is_most(who):
                sock.close()
                continue
            made = Connection(
                who,
                self._shares,
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
            )
            made.opening = loop.create_task(self._begin(made, sock))
            self._opening.add(made.opening)
            made.opening.add_done_callback(self._opening.discard)
            self._shares.connections.take(made)

    async def _begin(self, made: Connection, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        secure = self.config.ssl
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: made, sock, ssl=secure, ssl_handshake_timeout=HEAD_SECONDS if secure else None
            )
        except OSError:  # no TLS, or gone
            self._shares.connections.free(made)
        except BaseException:
            self._shares.connections.free(made)
            raise
