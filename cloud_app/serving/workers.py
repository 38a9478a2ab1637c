"""Child processes (`cloud_app.serving.worker`) for images and large bodies; ends those that take too long.

Threads would not do. Pydantic holds the interpreter's lock for as long as a body of many values takes it, so that nobody
else is answered; and a thread inside a decoder can be neither ended nor bounded in memory.
"""

import asyncio
import json
import logging
import math
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from typing import Any

import numpy as np

from cloud_app.serving import worker
from cloud_app.serving.fair_share import FairShare
from cloud_app.serving.infer_request import InferRequest, Refused, Signature

MEMORY = 512 << 20  # of one child, above what it starts with: an image of emo.data.image.MAX_PIXELS has room in it
CPU_SECONDS = 10.0
SECONDS = 30.0  # by the clock, where it waits for a processor or hangs
_HEAD = 1 << 20

log = logging.getLogger("emo")


class _Waiting:
    busy = False

    def __init__(self, who: str) -> None:
        self.who = who
        self.turn = asyncio.get_running_loop().create_future()

    def leave(self) -> None:
        if not self.turn.done():
            why = "too many images and large bodies wait to be read, yours most of all; try again in a second"
            self.turn.set_exception(Refused(503, why))


class Workers:
    """A client has `count` children at most, and all together one more, so that one that keeps them busy keeps nobody
    waiting; each is started when it is needed first. `queue`: requests that may wait, by turns of their clients;
    `wait_s`: how long. For one event loop."""

    def __init__(self, count: int = 2, queue: int = 64, wait_s: float = 10.0) -> None:
        self._count = count
        self._wait_s = wait_s
        self._queue = FairShare[_Waiting](queue)
        self._busy = Counter[str]()
        self._idle: list[Process] = []
        self._all = set[Process]()
        self.lost = 0  # children that had to be ended, or ended by what they read

    async def image(self, data: bytes, takes: Signature, who: str) -> tuple[np.ndarray[Any, Any], tuple[int, int]]:
        """As `cloud_app.serving.images.pixels`; also raises Refused as `_run`. `who`: the client that asks."""
        answer, array = await self._run(worker.image_job(takes), data, takes, who)
        width, height = answer["size"]
        return array, (int(width), int(height))

    async def call(self, body: bytes, takes: Signature, header: int | None, who: str) -> InferRequest:
        """As `cloud_app.serving.infer_request.parse`; also raises Refused as `_run`."""
        answer, array = await self._run(worker.call_job(takes, header), body, takes, who)
        return worker.as_call(answer, array)

    async def close(self) -> None:
        """Ends them all, whatever they do."""
        for child in self._all:
            _kill(child)
        await asyncio.gather(*(child.wait() for child in self._all))

    async def _run(
        self, job: worker.Job, data: bytes, takes: Signature, who: str
    ) -> tuple[worker.Job, np.ndarray[Any, Any]]:
        """Raises Refused: as the child does; more memory or time than there is for one (413); too many wait, or for too
        long (503)."""
        await self._turn(who)
        try:
            answer, result = await self._ask(job, data)
        finally:
            self._pass_on(who)
        if answer.get("status") == 500:
            log.error("a worker failed: %s", answer["error"])
            raise Refused(500, "the endpoint could not read this; its log says why")
        if "status" in answer:
            raise Refused(answer["status"], answer["error"])
        shape = tuple(answer["shape"])
        if len(result) != math.prod(shape) * takes.dtype.itemsize:
            raise Refused(500, "the endpoint could not read this")
        return answer, np.frombuffer(result, takes.dtype).reshape(shape)

    async def _turn(self, who: str) -> None:
        if self._may(who):
            self._busy[who] += 1
            return
        waiting = _Waiting(who)
        self._queue.take(waiting)
        try:
            async with asyncio.timeout(self._wait_s):
                await waiting.turn
        except BaseException as error:
            self._queue.free(waiting)
            if waiting.turn.done() and not waiting.turn.cancelled() and waiting.turn.exception() is None:
                self._pass_on(who)  # it had just been given its turn
            if isinstance(error, TimeoutError):
                raise Refused(503, "the time of this request was up before its turn came") from error
            raise

    def _may(self, who: str) -> bool:
        return self._busy.total() <= self._count and self._busy[who] < self._count

    def _pass_on(self, who: str) -> None:
        self._busy[who] -= 1
        self._busy += Counter()  # forgets those who have none
        while (waiting := self._queue.next(self._may)) is not None:
            if not waiting.turn.done():  # its client may have gone
                self._busy[waiting.who] += 1
                waiting.turn.set_result(None)

    async def _ask(self, job: worker.Job, data: bytes) -> tuple[worker.Job, bytes]:
        child = self._idle.pop() if self._idle else await self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            async with asyncio.timeout(SECONDS):
                child.stdin.write(worker.frame({**job, "seconds": CPU_SECONDS}, len(data)))
                child.stdin.write(data)
                await child.stdin.drain()
                lengths = await child.stdout.readexactly(worker.LENGTHS.size)
                head, size = worker.LENGTHS.unpack(lengths)
                answer: worker.Job = json.loads(await child.stdout.readexactly(min(head, _HEAD)))
                result = await child.stdout.readexactly(min(size, MEMORY))
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError, ValueError) as error:
            self.lost += 1
            self._end(child)
            raise Refused(413, worker.TOO_MUCH) from error
        except BaseException:
            self._end(child)  # nobody waits for its answer
            raise
        self._idle.append(child)
        return answer, result

    async def _start(self) -> Process:
        child = await asyncio.create_subprocess_exec(
            *worker.command(MEMORY),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,  # decoders write there what those who made the bytes want
            env=worker.environment(),
        )
        self._all.add(child)
        return child

    def _end(self, child: Process) -> None:
        _kill(child)
        self._all.discard(child)


def _kill(child: Process) -> None:
    if child.returncode is None:
        child.kill()
