"""Joins requests of one model into runs of several samples.

A batcher belongs to one event loop and needs no closing: one that is dropped still answers what waits in it.

While runs are under way the next batch gathers by itself, so a delay of 0 gives large batches where there is load
and none where there is none; a longer one waits for company on an idle machine too.

Two runs at a time, each with half of the threads, cost less than one with all of them, whose threads wait for each
other at every layer; `bench.serve --runs` compares.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np

from cloud_app.serving.fair_share import greediest
from cloud_app.serving.infer_request import Refused
from cloud_app.serving.infer_response import finite, not_finite
from cloud_app.serving.metrics import Stats

Results = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Limits:
    """`batch`: samples a run; `delay_s`: how long the first of a batch waits for others; `queue`: requests that may
    wait; `wait_s`: how long at most; `runs`: at a time, of one model; `run_s`: after which a run is ended."""

    batch: int = 64
    delay_s: float = 0.0
    queue: int = 256
    wait_s: float = 10.0
    runs: int = 2
    run_s: float = 60.0


class Options:
    """Of a run: whether it has to end."""

    terminate = False


class _Waiting:
    __slots__ = ("future", "give_up", "images", "since", "timer", "who")

    def __init__(
        self,
        images: np.ndarray[Any, Any],
        future: asyncio.Future[Results],
        who: str,
        give_up: Callable[["_Waiting", str], None],
    ) -> None:
        self.images = images
        self.future = future
        self.who = who
        self.give_up = give_up
        self.since = perf_counter_ns()
        self.timer: asyncio.TimerHandle | None = None

    def leave(self) -> None:
        self.give_up(self, "too many requests are waiting already, yours most of all; try again in a second")


class Batcher:
    """`run`: (batch, *sample) -> results with that first size, called in `pool`, `limits.runs` at a time. It is given
    `options()` too, and ends early where their `terminate` is set."""

    def __init__(
        self,
        run: Callable[[np.ndarray[Any, Any], Any], Results],
        pool: Executor,
        limits: Limits,
        stats: Stats,
        options: Callable[[], Any] = Options,
    ) -> None:
        self._run = run
        self._pool = pool
        self._limits = limits
        self._stats = stats
        self._queue = deque[_Waiting]()
        self._samples = 0
        self._options = options
        self._running = dict[Any, asyncio.TimerHandle]()
        self._flying = 0  # samples in them
        self._soon = False
        self._timer: asyncio.TimerHandle | None = None

    def stop(self) -> None:
        """Ends the runs under way."""
        for options in self._running:
            options.terminate = True

    async def submit(self, images: np.ndarray[Any, Any], timeout_s: float | None = None, who: str = "") -> Results:
        """The results for `images` (1 sample or more), which other requests' samples may share a run with. `who`: the
        client that asks.

        Raises Refused: the queue is full and no client has more in it, or the request has waited for `timeout_s` (at
        most `wait_s`; both 503), a result is not finite (400); and whatever `run` raises.
        """
        limits = self._limits
        loop = asyncio.get_running_loop()
        item = _Waiting(images, loop.create_future(), who, self._give_up)
        item.timer = loop.call_later(
            min(timeout_s or limits.wait_s, limits.wait_s),
            self._give_up,
            item,
            "the time of this request was up before its turn came",
        )
        self._queue.append(item)
        self._samples += len(images)
        self._stats.waiting += 1
        if len(self._queue) > limits.queue:
            greediest(self._queue).leave()
        self._schedule(loop)
        try:
            return await item.future
        except asyncio.CancelledError:
            if item.timer is not None:
                self._give_up(item, "nobody waits for it")
            raise

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        """The next run, where one may start: when its first request has waited for `delay_s`, or the batch is full."""
        limits = self._limits
        if self._soon or not self._may_start():
            return
        left_s = limits.delay_s and limits.delay_s - (perf_counter_ns() - self._queue[0].since) / 1e9
        if left_s <= 0 or self._samples >= limits.batch:
            self._soon = True
            loop.call_soon(self._start)  # what else this turn of the loop reads is to come along
        elif self._timer is None:
            self._timer = loop.call_later(left_s, self._start)

    def _may_start(self) -> bool:
        """Beside other runs only with as many samples as they have: a small one costs nearly as much as a large one,
        and the processor has their answers to write meanwhile."""
        if not self._queue or len(self._running) >= self._limits.runs:
            return False
        return not self._running or self._samples * len(self._running) >= self._flying

    def _start(self) -> None:
        self._soon = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._may_start():
            share = self._samples // (self._limits.runs - len(self._running))
            self._take(min(share, self._limits.batch))

    def _take(self, most: int) -> None:
        batch, samples = list[_Waiting](), 0
        # A request larger than the batch runs alone.
        while self._queue and (not batch or samples + len(self._queue[0].images) <= most):
            item = self._queue.popleft()
            self._left(item)
            if not item.future.done():  # its client may have gone
                batch.append(item)
                samples += len(item.images)
        if batch:
            loop, options = asyncio.get_running_loop(), self._options()
            self._running[options] = loop.call_later(self._limits.run_s, setattr, options, "terminate", True)
            self._flying += samples
            running = loop.run_in_executor(self._pool, self._timed, batch, options)
            running.add_done_callback(lambda done: self._done(batch, samples, options, done))

    def _give_up(self, item: _Waiting, why: str) -> None:
        self._queue.remove(item)
        self._left(item)
        if not item.future.done():
            item.future.set_exception(Refused(503, why))

    def _left(self, item: _Waiting) -> None:
        assert item.timer is not None
        item.timer.cancel()
        item.timer = None
        self._samples -= len(item.images)
        self._stats.waiting -= 1
        self._stats.queue.add(perf_counter_ns() - item.since)

    def _timed(self, batch: list[_Waiting], options: Any) -> tuple[Results, int, bool]:
        """The results, the time they took, and whether all of them are finite."""
        began = perf_counter_ns()
        images = batch[0].images if len(batch) == 1 else np.concatenate([item.images for item in batch])
        results = self._run(images, options)
        return results, perf_counter_ns() - began, finite(results)

    def _done(
        self,
        batch: list[_Waiting],
        samples: int,
        options: Any,
        done: asyncio.Future[tuple[Results, int, bool]],
    ) -> None:
        self._running.pop(options).cancel()
        self._flying -= samples
        self._schedule(asyncio.get_running_loop())
        error = done.exception()
        if error is not None and options.terminate:
            error = Refused(
                500, f"the model's run was ended: it took over {self._limits.run_s:g} s, or the endpoint ends"
            )
        if error is not None:
            for item in batch:
                if not item.future.done():
                    item.future.set_exception(error)
            return
        results, ns, all_finite = done.result()
        self._stats.ran(samples, len(batch), ns)
        at = 0
        for item in batch:
            mine = {name: result[at : at + len(item.images)] for name, result in results.items()}
            at += len(item.images)
            if item.future.done():
                continue
            if all_finite or finite(mine):
                item.future.set_result(mine)
            else:  # the others of its batch have nothing to do with it
                item.future.set_exception(not_finite())
