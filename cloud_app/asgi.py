"""A request's body from an ASGI server, within limits; an answer back to it.

Knows ASGI's messages, limits of size and time, and compression; imports no web framework and knows no route.
Source: asgi.readthedocs.io, HTTP & WebSocket message format.
"""

import asyncio
import gzip
import re
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from cloud_app.request import Refused

MAX_BODY = 16 << 20
MAX_HELD = 256 << 20  # bodies of all requests together: what clients can make us hold
BODY_SECONDS = 30.0
_COMPRESS = 1024  # smaller answers do not gain
_GZIP = re.compile(r"\bgzip\b(?!\s*;\s*q=0(?:\.0*)?(?:,|$))")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass
class Answer:
    body: bytes
    status: int = 200
    type: bytes = b"application/json"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


class Held:
    """Bytes of bodies in memory now; one for the whole endpoint."""

    def __init__(self, most: int = MAX_HELD) -> None:
        self.bytes = 0
        self.most = most


class Incoming:
    """One request. `headers`: lower-case names; of those sent twice the last."""

    def __init__(self, scope: Scope, receive: Receive, held: Held) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.client: str = (scope.get("client") or ("",))[0]
        self.size = 0
        self._receive = receive
        self._held = held

    def header(self, name: bytes) -> str:
        return self.headers.get(name, b"").decode("latin-1").strip()

    def number(self, name: bytes) -> int | None:
        """A header that counts bytes; None where it is absent. Raises Refused (400) where it is none."""
        text = self.header(name)
        if not text:
            return None
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise Refused(400, f"{name.decode()}: {text[:40]!r} is no number of bytes")
        return int(text)

    async def body(self) -> bytes:
        """All of it, decompressed. Raises Refused: over MAX_BODY (413), not complete in BODY_SECONDS (408), all
        bodies together over MAX_HELD (503), an unknown or a broken compression (415, 400).

        Counts as held until `release`.
        """
        coding = self.header(b"content-encoding").lower()
        if coding not in {"", "identity", "gzip", "deflate"}:
            raise Refused(
                415, f"Content-Encoding {coding[:40]!r} is not read here; send gzip, deflate or none"
            )
        if (self.number(b"content-length") or 0) > MAX_BODY:
            raise _too_large()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                data = await self._read()
        except TimeoutError as error:
            raise Refused(408, f"the body was not complete after {BODY_SECONDS:.0f} s") from error
        if coding in {"", "identity"}:
            return data
        plain = await asyncio.get_running_loop().run_in_executor(None, _inflate, data)
        self._hold(len(plain))
        return plain

    async def _read(self) -> bytes:
        body = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "the connection was closed before the body was complete")
            part: bytes = message.get("body", b"")
            if len(body) + len(part) > MAX_BODY:
                raise _too_large()
            self._hold(len(part))
            more = message.get("more_body", False)
            if not more and not body:
                return part
            body += part
            if not more:
                return bytes(body)

    def _hold(self, size: int) -> None:
        self.size += size
        self._held.bytes += size
        if self._held.bytes > self._held.most:
            raise Refused(
                503, "the bodies of other requests fill the memory set aside for them; try again in a second"
            )

    def release(self) -> None:
        self._held.bytes -= self.size
        self.size = 0


def _inflate(data: bytes) -> bytes:
    stream = zlib.decompressobj(47)  # reads gzip's header or zlib's
    try:
        plain = stream.decompress(data, MAX_BODY + 1)
    except zlib.error as error:
        raise Refused(400, f"the body is not what its Content-Encoding says: {error}") from error
    if len(plain) > MAX_BODY:
        raise _too_large()
    if not stream.eof or stream.unused_data:
        raise Refused(400, "the compressed body is cut off, or something follows it")
    return plain


def _too_large() -> Refused:
    return Refused(413, f"the body is over {MAX_BODY:,} bytes; send fewer samples a request")


async def reply(send: Send, request: Incoming, answer: Answer) -> None:
    """Gzip where the client takes it and it gains; no body to HEAD."""
    body = answer.body
    headers = [(b"content-type", answer.type), *answer.headers]
    if len(body) >= _COMPRESS and _GZIP.search(request.header(b"accept-encoding")):
        body = gzip.compress(body, 1)
        headers += [(b"content-encoding", b"gzip"), (b"vary", b"accept-encoding")]
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if request.method == "HEAD" else body})
