"""The observer's page and its API as an ASGI application. It only reads, but for what /api/try asks of the endpoint."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from html import escape
from typing import Any

from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from cloud_app.serving.fair_share import Shares
from cloud_app.serving.http.body import Answer, Incoming, as_json, packed, reply
from cloud_app.serving.infer_request import Refused
from cloud_app.watch import metrics
from cloud_app.watch.event_log import MOST
from cloud_app.watch.http.admission import Admission, query
from cloud_app.watch.http.assets import Assets
from cloud_app.watch.http.stream import Stream
from cloud_app.watch.watcher import Watcher

# No page may be framed, none of its parts comes from elsewhere; images that were dropped on it are blobs.
_POLICY = (
    b"default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'"
)
_SAFE = [
    (b"content-security-policy", _POLICY),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
]
_UNTIL_ASKED = (b"cache-control", b"no-store")

log = logging.getLogger("emo")
Handler = Callable[[Incoming], Awaitable[Any]]


class WatchApp:
    """`more`: what is not read from the view, by method and path."""

    def __init__(
        self, watcher: Watcher, admission: Admission, shares: Shares, more: Mapping[tuple[str, str], Handler]
    ) -> None:
        self.shares = shares
        self._watcher, self._admission, self._more = watcher, admission, more
        self._assets, self.stream = Assets(), Stream(watcher)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lifespan = Router(lifespan=self._living)

    @asynccontextmanager
    async def _living(self, _: Any) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        streaming = asyncio.create_task(self.stream.run())
        yield
        streaming.cancel()

    def stop(self) -> None:
        """Streams end, so that the server may. From any thread, once it has started."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.stream.end)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        request = Incoming(scope, receive, self.shares.held)
        try:
            answer = await self._answer(request, scope, receive, send)
            if answer is None:
                return
            if not any(name == b"content-encoding" for name, _ in answer.headers):
                answer = await packed(request, answer)
        except Refused as error:
            answer = _refusal(error, request)
        except asyncio.CancelledError:
            answer = _refusal(Refused(503, "the page is being stopped"), request)
        except Exception:
            log.exception("%s %s failed", request.method, request.path[:200])
            answer = as_json({"error": f"{request}: the page's server failed; its log says why"}, 500)
        request.release()
        held = any(name == b"cache-control" for name, _ in answer.headers)
        answer.headers = [*answer.headers, *_SAFE, *([] if held else [_UNTIL_ASKED])]
        await reply(send, request, answer)

    async def _answer(self, request: Incoming, scope: Scope, receive: Receive, send: Send) -> Answer | None:
        """None: it has been answered. Raises Refused."""
        self._admission.check_names(request.method, request.headers)
        path, asked = request.path, query(scope.get("query_string", b""))
        entered = self._admission.enter(path, asked)
        if entered is not None:
            return entered
        if path == "/healthz":
            return as_json({"ok": True})
        if request.method in {"GET", "HEAD"} and (path == "/" or path.startswith("/assets/")):
            return self._assets.answer(request, path.removeprefix("/assets/").lstrip("/") or "index.html")
        self._admission.check_key(request.headers)  # the page itself tells nothing, and asks for a key
        handler = self._more.get((request.method, path))
        if handler is not None:
            result = await handler(request)
            return result if isinstance(result, Answer) else as_json(result)
        others = {method for method, known in self._more if known == path}
        if others or request.method not in {"GET", "HEAD"}:
            raise Refused(405, f"{request}: this method is not offered here", ", ".join(others) or "GET, HEAD")
        if path == "/api/events":
            if request.method == "HEAD":
                return Answer(b"", type=b"text/event-stream")
            since = _number(request.header(b"last-event-id") or asked.get("since"), "since")
            await self.stream.serve(send, receive, since, _SAFE)
            return None
        return self._read(request, path, asked)

    def _read(self, request: Incoming, path: str, asked: dict[str, str]) -> Answer:
        if path == "/metrics":
            readers, own = self.stream.readers, self._watcher.figures()
            with self._watcher.view() as view:
                state = self._watcher.state(view)
                text = metrics.exposition(state, view.nodes.values(), readers, own)
            return Answer(text, type=metrics.CONTENT_TYPE.encode())
        found = self._found(path, asked)
        if found is None:
            raise Refused(404, f"{request}: there is no such thing here")
        return as_json(found)

    def _found(self, path: str, asked: dict[str, str]) -> Any:
        with self._watcher.view() as view:
            if path == "/api/state":
                return self._watcher.state(view)
            if path == "/api/history":
                return view.history()
            if path == "/api/log":
                limit, before = _number(asked.get("limit"), "limit"), _number(asked.get("before"), "before")
                limit = 200 if limit is None else min(limit, MOST)
                wanted = {key: asked.get(key, "") for key in ("node", "name", "level")}
                return {"entries": view.log(limit, before, **wanted)}
            if path.startswith("/api/nodes/"):
                return view.node(path.removeprefix("/api/nodes/"), self._watcher.clock())
        return None


def _number(text: str | None, name: str) -> int | None:
    """Raises Refused (400)."""
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise Refused(400, f"{name}: {text[:40]!r} is no number")
    return int(text)


def _refusal(error: Refused, request: Incoming) -> Answer:
    headers = {401: [(b"www-authenticate", b"Bearer")], 405: [(b"allow", error.allow.encode())]}.get(error.status, [])
    if error.status == 503:
        headers = [(b"retry-after", b"5")]
    if "text/html" in request.header(b"accept"):
        text = (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>EMO</title><p>{escape(str(error))}</p></html>'
        )
        return Answer(text.encode(), error.status, b"text/html; charset=utf-8", headers)
    return Answer(as_json({"error": str(error)}).body, error.status, headers=headers)
