"""Serves a model repository over HTTP.

Knows routes, limits of time and size, and signals; what a request says is `cloud_app.protocol`'s. The only file
that imports the web framework.

    GET  /v2   /v2/health/live   /v2/health/ready
    GET  /v2/models/NAME[/versions/V]   .../ready
    POST /v2/models/NAME[/versions/V]/infer
"""

import asyncio
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from cloud_app.protocol import Refused, Served
from cloud_app.repository import Repository
from emo import __version__
from emo.errors import ServeError

MAX_BODY = 16 << 20
BODY_SECONDS = 30.0
WAITING = 32  # requests held at a time: with MAX_BODY the bound on what clients can make us hold
DRAIN_SECONDS = 10


def app(models: Path, threads: int | None = None) -> FastAPI:
    """The endpoint over the newest version of every model in `models`; later versions need a restart.

    `threads`: onnxruntime's per model, the container's processors when left out. Raises ServeError: no model, or
    one that cannot be loaded.
    """
    repository = Repository(models)
    served = {name: Served.load(repository, name, threads) for name in repository.names()}
    if not served:
        raise ServeError(
            f"{models}: holds no model (NAME/VERSION/model.onnx); a run of `emo cloud` writes one there"
        )
    api = FastAPI(title="EMO", version=__version__, docs_url=None, redoc_url=None)  # those load from a CDN
    api.state.served = served
    # One request computes at a time, with all threads; parsing and running would stop the event loop.
    pool = ThreadPoolExecutor(1, "infer")
    held = 0

    def find(name: str, version: str | None) -> Served:
        model = served.get(name)
        if model is None:
            raise Refused(404, f"no model {name[:80]!r} here; there are: {', '.join(served)}")
        if version not in {None, str(model.version)}:
            raise Refused(
                404, f"model {name!r}: version {version!r:.24} is not loaded, version {model.version} is"
            )
        return model

    @api.get("/v2")
    async def server() -> JSONResponse:
        return JSONResponse({"name": "emo", "version": __version__, "extensions": []})

    @api.get("/v2/health/live")
    async def live() -> JSONResponse:
        return JSONResponse({"live": True})

    @api.get("/v2/health/ready")
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": True})

    @api.get("/v2/models/{name}")
    @api.get("/v2/models/{name}/versions/{version}")
    async def metadata(name: str, version: str | None = None) -> JSONResponse:
        return JSONResponse(find(name, version).metadata)

    @api.get("/v2/models/{name}/ready")
    @api.get("/v2/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: str | None = None) -> JSONResponse:
        find(name, version)
        return JSONResponse({"name": name, "ready": True})

    @api.post("/v2/models/{name}/infer")
    @api.post("/v2/models/{name}/versions/{version}/infer")
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        nonlocal held
        model = find(name, version)
        if held >= WAITING:
            raise Refused(503, f"{held} requests are waiting already; try again in a second")
        held += 1
        try:
            body = await _read(request)
            answer = await asyncio.get_running_loop().run_in_executor(pool, model.infer, body)
        finally:
            held -= 1
        return Response(answer, media_type="application/json")

    @api.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        headers = {"Retry-After": "1"} if error.status == 503 else None
        return JSONResponse({"error": str(error)}, error.status, headers)

    def plain(status: int, text: str) -> Callable[[Request, Exception], Awaitable[JSONResponse]]:
        async def answer(request: Request, _: Exception) -> JSONResponse:
            return JSONResponse({"error": f"{request.method} {request.url.path[:200]}: {text}"}, status)

        return answer

    api.add_exception_handler(404, plain(404, "no such resource"))
    api.add_exception_handler(405, plain(405, "this method is not offered here"))
    api.add_exception_handler(500, plain(500, "the endpoint failed; its log says why"))
    return api


async def _read(request: Request) -> bytes:
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refused(415, "compressed bodies are not read here; send plain JSON")
    if "inference-header-content-length" in request.headers:
        raise Refused(415, "binary tensors are not read here; send JSON")
    too_large = Refused(413, f"the body is over {MAX_BODY:,} bytes; send fewer samples a request")
    if int(request.headers.get("content-length", "0")) > MAX_BODY:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "the connection was closed before the body was complete")
                body += message.get("body", b"")
                if len(body) > MAX_BODY:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError as error:
        raise Refused(408, f"the body was not complete after {BODY_SECONDS:.0f} s") from error


def serve(models: Path, host: str = "127.0.0.1", port: int = 8000, threads: int | None = None) -> None:
    """Serve `models` until SIGTERM or Ctrl-C; requests under way are answered first. For a process's main thread.

    Port 0 takes a free one. Prints `serving NAME version V at http://HOST:PORT` once it can be asked. Raises
    ServeError as `app` does, and when the address cannot be had.
    """
    api = app(models, threads)
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except (OSError, OverflowError) as error:
        raise ServeError(
            f"cannot listen at {host}, port {port}: {error}; is another endpoint there?"
        ) from error
    server = uvicorn.Server(
        uvicorn.Config(
            api,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
    )

    def stop(*_: object) -> None:
        server.should_exit = True

    # Also after uvicorn's own handlers: it raises the signal again when it has drained, and we exit with 0.
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    models_there = ", ".join(f"{each.name} version {each.version}" for each in api.state.served.values())
    shown = f"[{host}]" if ":" in host else host
    sys.stdout.write(f"serving {models_there} at http://{shown}:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    server.run(sockets=[listener])
