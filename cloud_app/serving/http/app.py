"""The endpoint as an ASGI application: which path does what, who may, and what became of it.

    GET  /   /v2   /v2/health/live   /v2/health/ready   /v2/models/stats   /metrics   /openapi.json   /docs
    GET  /v2/models/NAME[/versions/V][/ready | /config | /stats]
    POST /v2/models/NAME[/versions/V]/infer | /predict
    POST /v2/repository/index   /v2/repository/models/NAME/load | /unload

OPTIONS on each says what is offered. Knows paths, methods and keys; what a path does is `cloud_app.serving.http.handlers`'. Imports no web framework.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import perf_counter_ns, time_ns

from cloud_app.serving.auth import AccessLog, Keys, Origins
from cloud_app.serving.fair_share import Rooms
from cloud_app.serving.http.body import Answer, Incoming, Receive, Scope, Send, no_room, packed, reply
from cloud_app.serving.http.handlers import Handlers, as_json
from cloud_app.serving.infer_request import Refused
from cloud_app.serving.registry import Models, Slot

log = logging.getLogger("emo")


class Endpoint:
    """`poll_s`: how often the repository is looked at for another version; 0: never."""

    def __init__(
        self,
        models: Models,
        keys: Keys,
        rooms: Rooms,
        access: AccessLog | None = None,
        poll_s: float = 2.0,
        origins: Origins | None = None,
    ) -> None:
        self._models = models
        self._keys = keys
        self._access = access
        self._poll_s = poll_s
        self._origins = origins or Origins()
        self.rooms = rooms
        self._handlers = Handlers(models, rooms)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live_through(receive, send)
            return
        began = perf_counter_ns()
        request = Incoming(scope, receive, self.rooms.held)
        slot: Slot | None = None
        try:
            handle, slot = self._route(request)
            found = await packed(request, await handle)
        except Refused as error:
            found = _refusal(error)
        except asyncio.CancelledError:
            ends = Refused(503, "the endpoint is being stopped")
            found = _refusal(no_room() if request.shown_out else ends)
        except Exception:
            log.exception("%s %s failed", request.method, request.path[:200])
            found = as_json({"error": f"{_shown(request)}: the endpoint failed; its log says why"}, 500)
        if self._origins and request.method != "OPTIONS":
            found.headers.extend(self._origins.headers(request.headers))
        request.release()
        ns = perf_counter_ns() - began
        if slot is not None:
            slot.stats.request(found.status, ns, time_ns() // 1_000_000)
        await reply(send, request, found)
        if self._access is not None:
            served = slot.served.signature if slot else None
            self._access.write(
                client=request.client,
                method=request.method,
                path=request.path[:200],
                status=found.status,
                ms=round(ns / 1e6, 3),
                bytes_in=request.size,
                bytes_out=len(found.body),
                model=served.name if served else None,
                version=served.version if served else None,
            )

    def _route(self, request: Incoming) -> tuple[Awaitable[Answer], Slot | None]:
        """What will answer, and the model whose figures it counts in. Raises Refused: 404, 405, 401, 403."""
        path = request.path.strip("/")
        if (
            self._origins
            and request.method == "OPTIONS"
            and (headers := self._origins.before(request.headers))
        ):
            return _empty(headers), None  # before keys: a browser sends none with it
        if not path.startswith("v2/health/"):
            self._admit(request)
        if path in self._handlers.server:
            method, handle = self._handlers.server[path]
            return _offered(request, method, lambda: handle(request)), None
        version: str | None = None
        match path.split("/"):
            case ["v2", "models", name, "versions", version, *rest]:
                pass
            case ["v2", "models", name, *rest]:
                pass
            case ["v2", "repository", "models", name, ("load" | "unload") as verb]:
                return _offered(request, "POST", lambda: self._change(request, name, verb)), None
            case _:
                rest = ["?"]
        action = "/".join(rest)
        if action not in self._handlers.model:
            raise Refused(404, f"{_shown(request)}: no such resource")
        method, on_model = self._handlers.model[action]
        slot = self._models.find(name, version)
        answer = _offered(request, method, lambda: on_model(request, slot))
        return answer, slot if request.method == method == "POST" else None

    def _change(self, request: Incoming, name: str, verb: str) -> Awaitable[Answer]:
        if not self._keys:
            raise Refused(
                403, "this endpoint is read-only: it was started without API keys, see --api-key-file"
            )
        return self._handlers.change(request, name, verb)

    def _admit(self, request: Incoming) -> None:
        if self._keys and not self._keys.fit(request.headers):
            raise Refused(401, "an API key is needed: `Authorization: Bearer KEY`, or `X-API-Key: KEY`")

    # -- the process

    async def _live_through(self, receive: Receive, send: Send) -> None:
        await receive()
        polling = asyncio.create_task(self._poll())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        polling.cancel()
        await self._handlers.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _poll(self) -> None:
        while self._poll_s:
            await asyncio.sleep(self._poll_s)
            try:
                await self._handlers.refresh()
            except Exception:
                log.exception("the repository could not be looked at")


def _offered(request: Incoming, method: str, answer: Callable[[], Awaitable[Answer]]) -> Awaitable[Answer]:
    """`answer` where the request has that `method`. Raises Refused (405)."""
    if request.method == method or (request.method, method) == ("HEAD", "GET"):
        return answer()
    allow = "GET, HEAD, OPTIONS" if method == "GET" else "POST, OPTIONS"
    if request.method == "OPTIONS":
        return _empty([(b"allow", allow.encode())])
    raise Refused(405, f"{_shown(request)}: this method is not offered here, {allow} are", allow)


async def _empty(headers: list[tuple[bytes, bytes]]) -> Answer:
    return Answer(b"", 204, headers=headers)


def _refusal(error: Refused) -> Answer:
    found = as_json({"error": str(error)}, error.status)
    more = {
        401: (b"www-authenticate", b"Bearer"),
        405: (b"allow", error.allow.encode()),
        503: (b"retry-after", b"1"),
    }
    found.headers.extend([more[error.status]] if error.status in more else [])
    return found


def _shown(request: Incoming) -> str:
    return f"{request.method} {request.path[:200]}"
