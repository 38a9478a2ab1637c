"""A request's body from an ASGI server within bounds of size and time, and the answer to it, compressed where that gains.

Source: asgi.readthedocs.io, HTTP & WebSocket message format.
"""

import asyncio
import gzip
import json
import re
import zlib
from dataclasses import dataclass, field, replace
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from cloud_app.serving.fair_share import FairShare, Holder, client
from cloud_app.serving.infer_request import Refused

if TYPE_CHECKING:  # emo watch has bodies, and no onnxruntime
    from cloud_app.serving.registry import Slot

BODY_SECONDS = 30.0
_NO_CONTENT = 204
_LITTLE = 4 << 10  # bytes of a request that are not counted: most requests are no larger
_LONGEST_QUERY = 1024
_COMPRESS = 1024  # smaller answers do not gain
_QUICK = 64 << 10  # larger ones would stop the loop for too long
_GZIP = re.compile(r"\bgzip\b(?!\s*;\s*q=0(?:\.0*)?(?:,|$))")


@dataclass
class Answer:
    body: bytes
    status: int = 200
    type: bytes = b"application/json"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


def as_json(value: Any, status: int = 200) -> Answer:
    return Answer(json.dumps(value, allow_nan=False).encode(), status)


class Incoming:
    """One request. `headers`: lower-case names; of those sent twice the last. `held`: where its bytes take room, for the
    client `who`. Where it has to give way `evicted` is set, and its task is cancelled. `slot`: whose figures it counts
    in, once that is known."""

    busy = False

    def __init__(self, scope: Scope, receive: Receive, held: FairShare[Holder]) -> None:
        self.began = perf_counter_ns()
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.client: str = (scope.get("client") or ("",))[0]
        self.who = client(self.client)
        self.size = 0
        self.evicted = False
        self.slot: Slot | None = None
        self._uncounted = 0
        self._counted = False
        self._query: bytes = scope.get("query_string", b"")
        self._receive = receive
        self._held = held
        self._task = asyncio.current_task()

    def __str__(self) -> str:
        return f"{self.method} {self.path[:200]}"

    def leave(self) -> None:
        self.evicted = True
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

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

    def asks(self, name: bytes) -> bool:
        """Whether the address ends in ?NAME=1. Raises Refused (400) where it says neither 1 nor 0."""
        text = dict(parse_qsl(self._query[:_LONGEST_QUERY], keep_blank_values=True)).get(name, b"0")
        if text not in {b"0", b"1"}:
            raise Refused(400, f"?{name.decode()}= takes 1 or 0")
        return text == b"1"

    @property
    def reads_gzip(self) -> bool:
        return _GZIP.search(self.header(b"accept-encoding")) is not None

    async def body(self, most: int) -> bytes:
        """All of it, decompressed. Raises Refused: over `most` bytes (413), not complete in BODY_SECONDS (408), an unknown
        or a broken compression (415, 400).

        Takes room until `release`.
        """
        coding = self.header(b"content-encoding").lower()
        if coding not in {"", "identity", "gzip", "deflate"}:
            raise Refused(415, f"Content-Encoding {coding[:40]!r} is not read here; send gzip, deflate or none")
        if (self.number(b"content-length") or 0) > most:
            raise _too_large(most)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                data = await self._read(most)
        except TimeoutError as error:
            raise Refused(408, f"the body was not complete after {BODY_SECONDS:.0f} s") from error
        if coding in {"", "identity"}:
            return data
        plain = await asyncio.get_running_loop().run_in_executor(None, _inflate, data, most)
        self.hold(len(plain))
        return plain

    async def object(self, most: int) -> dict[str, Any]:
        """The body as a JSON object; empty where there is no body. Raises Refused: as `body`, and on anything else (400)."""
        body = await self.body(most)
        try:
            value = json.loads(body) if body.strip() else {}
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is not JSON: {str(error)[:100]}") from error
        if not isinstance(value, dict):
            raise Refused(400, "the body is not a JSON object")
        return value

    async def _read(self, most: int) -> bytes:
        body = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "the connection was closed before the body was complete")
            part: bytes = message.get("body", b"")
            if len(body) + len(part) > most:
                raise _too_large(most)
            self.hold(len(part))
            self.size += len(part)
            more = message.get("more_body", False)
            if not more and not body:
                return part
            body += part
            if not more:
                return bytes(body)

    def hold(self, size: int) -> None:
        """Raises Refused (503) where it is this request that has to give way."""
        self._uncounted += size
        if self._uncounted < _LITTLE:
            return
        self._held.take(self, self._uncounted)
        self._uncounted, self._counted = 0, True
        if self.evicted:
            raise no_room()

    def release(self) -> None:
        if self._counted:
            self._held.free(self)


def _inflate(data: bytes, most: int) -> bytes:
    stream = zlib.decompressobj(47)  # reads gzip's header or zlib's
    try:
        plain = stream.decompress(data, most + 1)
    except zlib.error as error:
        raise Refused(400, f"the body is not what its Content-Encoding says: {error}") from error
    if len(plain) > most:
        raise _too_large(most)
    if not stream.eof or stream.unused_data:
        raise Refused(400, "the compressed body is cut off, or something follows it")
    return plain


def no_room() -> Refused:
    return Refused(503, "bodies fill the memory set aside for them, yours most of all; try again in a second")


def _too_large(most: int) -> Refused:
    return Refused(413, f"the body is over {most:,} bytes, the most that is read here")


async def packed(request: Incoming, answer: Answer) -> Answer:
    """`answer` as it goes out: in gzip where the client reads that and it gains. Raises Refused (503) where there is no
    room for it."""
    request.hold(len(answer.body))
    if len(answer.body) < _COMPRESS or not request.reads_gzip:
        return answer
    if len(answer.body) < _QUICK:
        body = gzip.compress(answer.body, 1)
    else:
        body = await asyncio.get_running_loop().run_in_executor(None, gzip.compress, answer.body, 1)
    coded = [(b"content-encoding", b"gzip"), (b"vary", b"accept-encoding")]
    return replace(answer, body=body, headers=[*answer.headers, *coded])


async def reply(send: Send, request: Incoming, answer: Answer) -> None:
    """Sends `answer`; to HEAD without its body."""
    headers = answer.headers
    if answer.status != _NO_CONTENT:
        headers = [(b"content-type", answer.type), *headers, (b"content-length", b"%d" % len(answer.body))]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if request.method == "HEAD" else answer.body})
