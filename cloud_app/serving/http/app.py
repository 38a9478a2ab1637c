"""The endpoint as an ASGI application: the table of its paths, out of which come Starlette's routes and the OpenAPI
document, and what holds for every request (web pages' origins, API keys, counting, the access log).

OPTIONS on each path says what is offered.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from html import escape
from time import perf_counter_ns, time_ns
from typing import Any

from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from cloud_app.serving.auth import AccessLog, Keys, Origins
from cloud_app.serving.fair_share import Shares
from cloud_app.serving.http.body import Answer, Incoming, as_json, no_room, packed, reply
from cloud_app.serving.http.handlers import Handlers
from cloud_app.serving.infer_request import Refused
from cloud_app.serving.registry import Models
from emo import __version__

_MODEL = "/v2/models/{name}"

log = logging.getLogger("emo")


def _object(required: str = "", **properties: Any) -> dict[str, Any]:
    needs = {"required": required.split()} if required else {}
    return {"type": "object", **needs, "properties": properties}


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


_STRING, _INTEGER, _BOOLEAN = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_TENSOR = _object(
    "name shape datatype",
    name=_STRING,
    shape=_list(_INTEGER),
    datatype={"enum": ["UINT8", "FP32", "BYTES"]},
    data={"type": "array", "description": "flat, or nested as shape says"},
    parameters=_object(binary_data_size=_INTEGER),
)
_OUTPUT = _object("name", name=_STRING, parameters=_object(classification=_INTEGER, binary_data=_BOOLEAN))
_MICROSECONDS = {"type": "integer", "description": "microseconds"}
_REQUEST = _object(
    "inputs",
    id=_STRING,
    parameters=_object(timeout=_MICROSECONDS, binary_data_output=_BOOLEAN),
    inputs=_list(_TENSOR),
    outputs=_list(_OUTPUT),
)
_TENSORS = {"application/json": {"schema": _REQUEST}, "application/octet-stream": _BINARY}
_IMAGE = {"image/*": _BINARY}
_MEMBERS = {"members": "1: also what each member answers for itself, in `members`; empty in a version without them"}
_ERROR = {
    "description": "What was wrong, in words.",
    "content": {"application/json": {"schema": {"type": "object", "required": ["error"]}}},
}


class Operation(Route):
    """One line of the table. `handle` is called with the request and, below `/v2/models/{name}`, with that model's slot.
    `summary`, `body` and `query`: for the OpenAPI document; the schema of the request's body by its content type; what may
    follow the path's ?, and what it does where it is 1."""

    def __init__(
        self,
        method: str,
        path: str,
        handle: Callable[..., Awaitable[Any]],
        summary: str = "",
        body: dict[str, Any] | None = None,
        query: dict[str, str] | None = None,
    ) -> None:
        super().__init__(path, handle, methods=[method])
        self.method, self.handler, self.summary, self.body = method, handle, summary, body
        self.query = query or {}
        self.of_model = path.startswith(_MODEL)

    @property
    def allow(self) -> str:
        return "GET, HEAD, OPTIONS" if self.method == "GET" else "POST, OPTIONS"

    def of_version(self) -> "Operation":
        """The same of a version of the model."""
        path = self.path.replace(_MODEL, _MODEL + "/versions/{version}")
        return Operation(self.method, path, self.handler, self.summary, self.body, self.query)


def table(of: Handlers) -> list[Operation]:
    get, post = partial(Operation, "GET"), partial(Operation, "POST")
    change = "/v2/repository/models/{name}"
    described = [
        get("/v2", of.about, "Name, version and extensions of this server."),
        get("/v2/health/live", of.live, "Is the process there? Needs no key."),
        get("/v2/health/ready", of.ready, "Can it be asked? Needs no key."),
        get(_MODEL, of.metadata, "Metadata: version, input, outputs, labels, members, accuracy at export."),
        get(_MODEL + "/ready", of.model_ready, "Is this model loaded?"),
        get(_MODEL + "/config", of.config, "Triton's model configuration."),
        get(_MODEL + "/stats", of.stats, "Counts and times of this model's requests and runs."),
        get("/v2/models/stats", of.all_stats, "The same of all models."),
        post(_MODEL + "/infer", of.infer, "Tensors in, tensors out: JSON, or binary after the JSON.", _TENSORS),
        post(_MODEL + "/predict", of.predict, "An image file in, label and probabilities out.", _IMAGE, _MEMBERS),
        post("/v2/repository/index", of.index, "Every version in the repository, and whether it answers."),
        post(change + "/load", of.load, "Load the current version now. Needs a key."),
        post(change + "/unload", of.unload, "Answer no more for this model. Needs a key."),
        get("/metrics", of.metrics, "Figures for Prometheus."),
    ]

    async def openapi(_: Incoming) -> Any:
        return document(described)

    async def docs(_: Incoming) -> Answer:
        return Answer(page(described).encode(), type=b"text/html; charset=utf-8")

    return [*described, get("/", of.front), get("/openapi.json", openapi), get("/docs", docs)]


class Endpoint(Router):
    """`poll_s`: how often the repository is looked at for another version; 0: never."""

    def __init__(
        self,
        models: Models,
        keys: Keys,
        shares: Shares,
        access: AccessLog | None = None,
        poll_s: float = 2.0,
        origins: Origins | None = None,
    ) -> None:
        self.shares = shares
        self._models = models
        self._keys = keys
        self._access = access
        self._poll_s = poll_s
        self._origins = origins or Origins()
        self._handlers = Handlers(models, shares, read_only=not keys)
        operations = table(self._handlers)
        operations += [each.of_version() for each in operations if each.of_model]
        # Inference is tried first, since it is in a hurry; then paths without a name: `/v2/models/stats` is no model.
        self._operations = sorted(operations, key=lambda each: (each.body is None, "{" in each.path))
        super().__init__(self._operations, lifespan=self._lifespan)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await super().__call__(scope, receive, send)
            return
        request = Incoming(scope, receive, self.shares.held)
        try:
            answer = await packed(request, await self._answer(request))
        except Refused as error:
            answer = _refusal(error)
        except asyncio.CancelledError:
            ends = Refused(503, "the endpoint is being stopped")
            answer = _refusal(no_room() if request.evicted else ends)
        except Exception:
            log.exception("%s %s failed", request.method, request.path[:200])
            answer = as_json({"error": f"{request}: the endpoint failed; its log says why"}, 500)
        if self._origins and request.method != "OPTIONS":
            answer.headers.extend(self._origins.headers(request.headers))
        request.release()
        ns = perf_counter_ns() - request.began
        slot = request.slot
        if slot is not None:
            slot.stats.request(answer.status, ns, time_ns() // 1_000_000)
        await reply(send, request, answer)
        if self._access is not None:
            served = slot.served.signature if slot else None
            self._access.write(
                client=request.client,
                method=request.method,
                path=request.path[:200],
                status=answer.status,
                ms=round(ns / 1e6, 3),
                bytes_in=request.size,
                bytes_out=len(answer.body),
                model=served.name if served else None,
                version=served.version if served else None,
            )

    async def _answer(self, request: Incoming) -> Answer:
        """Raises Refused: 404, 405, 401, or as the handler does."""
        # Before keys: a browser sends none with it.
        if request.method == "OPTIONS" and (headers := self._origins.preflight(request.headers)):
            return Answer(b"", 204, headers=headers)
        path = "/" + request.path.strip("/")
        if self._keys and not path.startswith("/v2/health/") and not self._keys.fit(request.headers):
            raise Refused(401, "an API key is needed: `Authorization: Bearer KEY`, or `X-API-Key: KEY`")
        operation, arguments = self._find(request, path)
        if operation.of_model:
            arguments = {"slot": self._models.find(arguments["name"], arguments.get("version"))}
        if request.method == "OPTIONS":
            return Answer(b"", 204, headers=[(b"allow", operation.allow.encode())])
        if request.method not in (operation.methods or ()):
            text = f"{request}: this method is not offered here, {operation.allow} are"
            raise Refused(405, text, operation.allow)
        if request.method == "POST":
            request.slot = arguments.get("slot")
        result = await operation.handler(request, **arguments)
        return result if isinstance(result, Answer) else as_json(result)

    def _find(self, request: Incoming, path: str) -> tuple[Operation, dict[str, Any]]:
        """The operation, and the names in the path. Raises Refused (404)."""
        for operation in self._operations:  # Router's own loop costs an inference request 5 us more
            match = operation.path_regex.fullmatch(path)
            if match is not None:
                return operation, match.groupdict()
        raise Refused(404, f"{request}: no such resource")

    # -- the process

    @asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        polling = asyncio.create_task(self._poll())
        yield
        polling.cancel()
        await self._handlers.close()

    async def _poll(self) -> None:
        while self._poll_s:
            await asyncio.sleep(self._poll_s)
            try:
                await self._handlers.refresh()
            except Exception:
                log.exception("the repository could not be looked at")


def _refusal(error: Refused) -> Answer:
    headers = {
        401: [(b"www-authenticate", b"Bearer")],
        405: [(b"allow", error.allow.encode())],
        503: [(b"retry-after", b"1")],
    }
    return Answer(as_json({"error": str(error)}).body, error.status, headers=headers.get(error.status, []))


def document(operations: list[Operation]) -> dict[str, Any]:
    """OpenAPI 3.1; every path also answers with `/versions/{version}` after the model's name."""
    paths: dict[str, dict[str, Any]] = {}
    for each in operations:
        about: dict[str, Any] = {
            "summary": each.summary,
            "responses": {"200": {"description": "Done."}, "4XX": _ERROR},
        }
        if each.body is not None:
            about["requestBody"] = {"required": True, "content": each.body}
            about["responses"]["503"] = {**_ERROR, "description": "Too much is waiting; see Retry-After."}
        about["parameters"] = [
            {"name": name, "in": "query", "description": text, "schema": {"enum": ["0", "1"]}}
            for name, text in each.query.items()
        ]
        if "{name}" in each.path:
            about["parameters"].append({"name": "name", "in": "path", "required": True, "schema": _STRING})
        paths.setdefault(each.path, {})[each.method.lower()] = about
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "EMO: Open Inference Protocol v2", "version": __version__},
        "paths": paths,
        "components": {"securitySchemes": schemes},
        "security": [{}, {"bearer": []}, {"header": []}],
    }


def page(operations: list[Operation]) -> str:
    """One page of HTML, with nothing loaded from elsewhere: the paths, and two lines to copy."""
    rows = "".join(
        f"<tr><td>{each.method}</td><td><code>{escape(each.path)}</code></td><td>{escape(each.summary)}</td></tr>"
        for each in operations
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>EMO endpoint</title>
<style>body{{font:16px sans-serif;max-width:60em;margin:2em auto}}td{{padding:.2em .8em .2em 0}}</style>
<h1>EMO {escape(__version__)}: Open Inference Protocol v2</h1>
<p>For machines: <a href="openapi.json">openapi.json</a>. Each model path also takes
<code>/versions/VERSION</code> after the name.</p>
<table>{rows}</table>
<pre>curl --data-binary @IMAGE http://HOST:PORT/v2/models/NAME/predict
curl http://HOST:PORT/v2/models/NAME</pre></html>
"""
