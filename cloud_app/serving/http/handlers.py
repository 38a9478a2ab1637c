"""Answers each path of the endpoint, and decides which thread a piece of work may hold up.

Sources: the Open Inference Protocol; triton-inference-server/server, docs/protocol (its extensions).
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter_ns
from typing import Any, TypeVar

import numpy as np

from cloud_app.serving.fair_share import Shares
from cloud_app.serving.http.body import Answer, Incoming, as_json
from cloud_app.serving.infer_request import Refused, Signature, parse
from cloud_app.serving.infer_response import answer, must_be_short, ranked
from cloud_app.serving.model import MEMBERS
from cloud_app.serving.onnx_session import cpus
from cloud_app.serving.registry import Models, Slot
from cloud_app.serving.workers import Workers
from emo import __version__
from emo.errors import ServeError

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")
MAX_IMAGE = 16 << 20
_SMALL = 64 << 10  # of calls that need no more
_LARGE = 64 << 10  # JSON of this size would stop the loop for too long
T = TypeVar("T")


class Handlers:
    """One method a path: an Answer, or what goes out as JSON. Each may raise Refused. With `read_only` models are neither
    loaded nor unloaded on request."""

    def __init__(self, models: Models, shares: Shares, *, read_only: bool) -> None:
        self._models = models
        self._shares = shares
        self._read_only = read_only
        self._workers = Workers(min(2, cpus()))
        self._threads = ThreadPoolExecutor(2, "parse")
        self._loader = ThreadPoolExecutor(1, "load")

    async def refresh(self) -> None:
        await self._in_loader(self._models.refresh)

    async def close(self) -> None:
        for pool in (self._loader, self._threads):
            pool.shutdown(wait=False, cancel_futures=True)
        self._models.close()
        await self._workers.close()

    # -- inference

    async def infer(self, request: Incoming, slot: Slot) -> Answer:
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

    async def predict(self, request: Incoming, slot: Slot) -> Any:
        takes = slot.served.signature
        if request.header(b"content-type").startswith("multipart/"):
            raise Refused(415, "send the image file as the body itself: curl --data-binary @FILE")
        if len(takes.outputs.get("probabilities", ())) != 1:
            raise Refused(400, f"model {takes.name!r} gives no probabilities; use the protocol's infer call")
        members = request.asks(b"members")
        body = await request.body(MAX_IMAGE)
        images, size = await self._workers.image(body, takes, request.who)
        results = await (slot.members if members else slot.batcher).submit(images, None, request.who)
        best = _labelled(results["probabilities"][0], takes)
        answer = {
            "model_name": takes.name,
            "model_version": str(takes.version),
            "label": best[0]["label"],
            "probabilities": best,
            "image": list(size),
            "input": [takes.sample[2], takes.sample[1]],
        }
        if members:
            own = zip(slot.served.answers, results[MEMBERS][0], strict=True) if slot.served.answers else ()
            answer["members"] = [{"name": name, "probabilities": _labelled(row, takes)} for name, row in own]
        return answer

    async def _aside(self, work: Callable[[], T]) -> T:
        """On another thread: what takes longer than a request may hold up the others."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    # -- about models

    async def metadata(self, _: Incoming, slot: Slot) -> Any:
        return slot.served.metadata

    async def model_ready(self, _: Incoming, slot: Slot) -> Any:
        return {"name": slot.served.signature.name, "ready": True}

    async def config(self, _: Incoming, slot: Slot) -> Any:
        return slot.served.config

    async def stats(self, _: Incoming, slot: Slot) -> Any:
        signature = slot.served.signature
        return {"model_stats": [slot.stats.as_triton(signature.name, signature.version)]}

    async def all_stats(self, _: Incoming) -> Any:
        return {"model_stats": [stats.as_triton(name, version) for name, version, stats in self._models.stats()]}

    # -- the repository

    async def index(self, request: Incoming) -> Any:
        ready = (await request.object(_SMALL)).get("ready") is True
        return await self._in_loader(lambda: self._models.index(ready=ready))

    async def load(self, request: Incoming, name: str) -> Any:
        if (await self._change(request)).get("parameters"):
            raise Refused(400, "load: takes no parameters here; a model comes from the repository alone")
        await self._in_loader(lambda: self._models.load(name))
        return {}

    async def unload(self, request: Incoming, name: str) -> Any:
        await self._change(request)
        await self._in_loader(lambda: self._models.unload(name))
        return {}

    async def _change(self, request: Incoming) -> dict[str, Any]:
        if self._read_only:
            raise Refused(403, "this endpoint is read-only: it was started without API keys, see --api-key-file")
        return await request.object(_SMALL)

    async def _in_loader(self, work: Callable[[], T]) -> T:
        """Raises Refused (400) in a ServeError's place."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._loader, work)
        except Refused:
            raise
        except ServeError as error:
            raise Refused(400, str(error)) from error

    # -- about the server

    async def front(self, _: Incoming) -> Answer:
        # From where we are: a proxy may put us below a path.
        return Answer(b"", 307, headers=[(b"location", b"docs")])

    async def about(self, _: Incoming) -> Any:
        return {"name": "emo", "version": __version__, "extensions": EXTENSIONS}

    async def live(self, _: Incoming) -> Any:
        return {"live": True}

    async def ready(self, _: Incoming) -> Answer:
        ready = bool(self._models.loaded())
        return as_json({"ready": ready}, 200 if ready else 503)

    async def metrics(self, _: Incoming) -> Answer:
        # Its import takes 60 ms, which nobody waits for at the start.
        from cloud_app.serving.http.prometheus import exposition  # noqa: PLC0415

        process = {
            "emo_held_bytes": self._shares.held.taken,
            "emo_held_shown_out_total": self._shares.held.evicted,
            "emo_connections": self._shares.connections.taken,
            "emo_connections_shown_out_total": self._shares.connections.evicted,
            "emo_workers_lost_total": self._workers.lost,
            "emo_model_loads_total": self._models.loads,
            "emo_model_load_failures_total": self._models.load_failures,
        }
        text = exposition(self._models.stats(), process)
        return Answer(text, type=b"text/plain; version=0.0.4; charset=utf-8")


def _labelled(row: np.ndarray[Any, Any], takes: Signature) -> list[dict[str, Any]]:
    return [{"label": label, "probability": value} for _, label, value in ranked(row, takes.labels)]
