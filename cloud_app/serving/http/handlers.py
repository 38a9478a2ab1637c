"""What each path of the endpoint does: a request to its answer.

Knows models, their queues and figures, and which thread a piece of work may hold up. Knows neither paths nor who may
ask. Sources: the Open Inference Protocol; triton-inference-server/server, docs/protocol (its extensions).
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter_ns
from typing import Any, TypeVar

from cloud_app.serving.children import Workers
from cloud_app.serving.fair_share import Rooms
from cloud_app.serving.http import openapi
from cloud_app.serving.http.body import Answer, Incoming
from cloud_app.serving.infer_request import Refused, parse
from cloud_app.serving.infer_response import answer, must_be_short, ranked
from cloud_app.serving.metrics import prometheus
from cloud_app.serving.onnx_session import cpus, resident
from cloud_app.serving.registry import Models, Slot
from emo import __version__
from emo.errors import ServeError

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")
MAX_IMAGE = 16 << 20
_SMALL = 64 << 10  # of calls that need no more
_LARGE = 64 << 10  # JSON of this size would stop the loop for too long
T = TypeVar("T")


class Handlers:
    """`server` and `model`: by what follows in the path, (method, handler). Each handler raises Refused."""

    def __init__(self, models: Models, rooms: Rooms) -> None:
        self._models = models
        self._rooms = rooms
        self._workers = Workers(min(2, cpus()))
        self._threads = ThreadPoolExecutor(2, "parse")
        self._loader = ThreadPoolExecutor(1, "load")
        self.server: dict[str, tuple[str, Callable[[Incoming], Awaitable[Answer]]]] = {
            "": ("GET", self._front),
            "v2": ("GET", self._about),
            "v2/health/live": ("GET", self._live),
            "v2/health/ready": ("GET", self._ready),
            "v2/models/stats": ("GET", self._all_stats),
            "v2/repository/index": ("POST", self._index),
            "metrics": ("GET", self._metrics),
            "openapi.json": ("GET", self._openapi),
            "docs": ("GET", self._docs),
        }
        self.model: dict[str, tuple[str, Callable[[Incoming, Slot], Awaitable[Answer]]]] = {
            "": ("GET", self._metadata),
            "ready": ("GET", self._model_ready),
            "config": ("GET", self._config),
            "stats": ("GET", self._stats),
            "infer": ("POST", self._infer),
            "predict": ("POST", self._predict),
        }

    async def refresh(self) -> None:
        await self._in_loader(self._models.refresh)

    async def close(self) -> None:
        for pool in (self._loader, self._threads):
            pool.shutdown(wait=False, cancel_futures=True)
        self._models.close()
        await self._workers.close()

    # -- inference

    async def _infer(self, request: Incoming, slot: Slot) -> Answer:
        header = request.number(b"inference-header-content-length")
        takes = slot.served.signature
        body = await request.body(takes.largest)
        began = perf_counter_ns()
        if (len(body) if header is None else header) < _LARGE:
            call = parse(body, takes, header)
        else:
            call = await self._workers.call(body, takes, header, request.who)
        must_be_short(call, takes)
        slot.stats.parse.add(perf_counter_ns() - began)
        results = await slot.batcher.submit(call.images, call.timeout_s, request.who)
        size = sum([result.nbytes for result in results.values()])
        request.hold(size)
        began = perf_counter_ns()
        if 2 * size < _LARGE:
            data, head = answer(call, results, takes)
        else:
            data, head = await self._aside(lambda: answer(call, results, takes))
        slot.stats.answer.add(perf_counter_ns() - began)
        if head is None:
            return Answer(data)
        length = (b"inference-header-content-length", b"%d" % head)
        return Answer(data, type=b"application/octet-stream", headers=[length])

    async def _predict(self, request: Incoming, slot: Slot) -> Answer:
        takes = slot.served.signature
        if request.header(b"content-type").startswith("multipart/"):
            raise Refused(415, "send the image file as the body itself: curl --data-binary @FILE")
        if len(takes.outputs.get("probabilities", ())) != 1:
            raise Refused(400, f"model {takes.name!r} gives no probabilities; use the protocol's infer call")
        body = await request.body(MAX_IMAGE)
        images, size = await self._workers.image(body, takes, request.who)
        results = await slot.batcher.submit(images, None, request.who)
        best = ranked(results["probabilities"][0], takes.labels)
        return as_json(
            {
                "model_name": takes.name,
                "model_version": str(takes.version),
                "label": best[0][1],
                "probabilities": [{"label": label, "probability": value} for _, label, value in best],
                "image": list(size),
                "input": [takes.sample[2], takes.sample[1]],
            }
        )

    async def _aside(self, work: Callable[[], T]) -> T:
        """On another thread: what takes longer than a request may hold up the others."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    # -- about models

    async def _metadata(self, _: Incoming, slot: Slot) -> Answer:
        return as_json(slot.served.metadata)

    async def _model_ready(self, _: Incoming, slot: Slot) -> Answer:
        return as_json({"name": slot.served.signature.name, "ready": True})

    async def _config(self, _: Incoming, slot: Slot) -> Answer:
        return as_json(slot.served.config)

    async def _stats(self, _: Incoming, slot: Slot) -> Answer:
        signature = slot.served.signature
        return as_json({"model_stats": [slot.stats.shown(signature.name, signature.version)]})

    async def _all_stats(self, _: Incoming) -> Answer:
        return as_json(
            {"model_stats": [stats.shown(name, version) for name, version, stats in self._models.stats()]}
        )

    # -- the repository

    async def _index(self, request: Incoming) -> Answer:
        ready = _object(await request.body(_SMALL)).get("ready") is True
        return as_json(await self._in_loader(lambda: self._models.index(ready=ready)))

    async def change(self, request: Incoming, name: str, verb: str) -> Answer:
        """`verb`: load or unload."""
        parameters = _object(await request.body(_SMALL)).get("parameters")
        if verb == "load" and parameters:
            raise Refused(400, "load: takes no parameters here; a model comes from the repository alone")
        change = self._models.load if verb == "load" else self._models.unload
        await self._in_loader(lambda: change(name))
        return as_json({})

    async def _in_loader(self, work: Callable[[], T]) -> T:
        """Raises Refused (400) in a ServeError's place."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._loader, work)
        except Refused:
            raise
        except ServeError as error:
            raise Refused(400, str(error)) from error

    # -- about the server

    async def _front(self, _: Incoming) -> Answer:
        return Answer(
            b"", 307, headers=[(b"location", b"docs")]
        )  # from where we are: a proxy may put us below a path

    async def _about(self, _: Incoming) -> Answer:
        return as_json({"name": "emo", "version": __version__, "extensions": EXTENSIONS})

    async def _live(self, _: Incoming) -> Answer:
        return as_json({"live": True})

    async def _ready(self, _: Incoming) -> Answer:
        ready = bool(self._models.loaded())
        return as_json({"ready": ready}, 200 if ready else 503)

    async def _metrics(self, _: Incoming) -> Answer:
        gauges = {
            "emo_held_bytes": self._rooms.held.taken,
            "emo_held_shown_out_total": self._rooms.held.shown_out,
            "emo_connections": self._rooms.connections.taken,
            "emo_connections_shown_out_total": self._rooms.connections.shown_out,
            "emo_workers_lost_total": self._workers.lost,
            "emo_model_loads_total": self._models.loads,
            "emo_model_load_failures_total": self._models.load_failures,
        }
        memory = resident()
        if memory is not None:
            gauges["process_resident_memory_bytes"] = memory
        text = prometheus(self._models.stats(), gauges)
        return Answer(text.encode(), type=b"text/plain; version=0.0.4; charset=utf-8")

    async def _openapi(self, _: Incoming) -> Answer:
        return as_json(openapi.document(__version__))

    async def _docs(self, _: Incoming) -> Answer:
        return Answer(openapi.page(__version__).encode(), type=b"text/html; charset=utf-8")


def as_json(value: Any, status: int = 200) -> Answer:
    return Answer(json.dumps(value, allow_nan=False).encode(), status)


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {str(error)[:100]}") from error
    if not isinstance(value, dict):
        raise Refused(400, "the body is not a JSON object")
    return value
