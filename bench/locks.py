"""How long receiving and training wait for each other, in one process.

    python -m bench.locks [--json FILE] [--seconds 20]

An edge's node takes batches of MobileNet (16 x 128 x 16 x 16) on one thread as fast as it can, over 1 GiB of them with
level 1 a tenth of that, and trains on another; a third prefetches. Every lock that the cache has made is timed: the
longest and the 99.9 % wait to get it, and the longest that it was held, in milliseconds. The interpreter's own lock is in
these figures.
"""

import contextlib
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from edge_app.cache.disk import DiskCache
from edge_app.cache.replay_cache import ReplayCache
from edge_app.node import EdgeNode
from emo.config import EdgeConfig, Model, Tap
from emo.journal import Journal
from emo.models import split_network
from emo.wire.codec import Packed
from emo.wire.messages import ActivationBatch, RunState
from testbed import figures

_BATCHES, _SAMPLES, _VERSIONS = 512, 16, 2
_MODEL = Model(name="mobilenet6", width=1.0, input=(3, 32, 32))
_lock = threading.Lock


class Timed:
    """A lock that remembers, thread by thread, how long it was waited for and held."""

    def __init__(self) -> None:
        self._inner, self._since = _lock(), 0.0
        self.waits: dict[str, list[float]] = defaultdict(list)
        self.held: dict[str, list[float]] = defaultdict(list)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        began = time.perf_counter()
        got = self._inner.acquire(blocking, timeout)
        now = time.perf_counter()
        if blocking:
            self.waits[threading.current_thread().name].append(now - began)
        if got:
            self._since = now
        return got

    def release(self) -> None:
        self.held[threading.current_thread().name].append(time.perf_counter() - self._since)
        self._inner.release()

    def locked(self) -> bool:
        return self._inner.locked()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def main() -> None:
    parser = figures.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="each measurement lasts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with (
        threadpool_limits(1, "blas"),
        tempfile.TemporaryDirectory() as folder,
        _edge(Path(folder)) as (node, locks),
    ):
        measured = _measure(node, locks, args.seconds)
    figures.show(measured)
    figures.write(args.json, measured)


@contextlib.contextmanager
def _edge(folder: Path) -> Iterator[tuple[EdgeNode, list[Timed]]]:
    locks: list[Timed] = []

    def make() -> Timed:
        locks.append(Timed())
        return locks[-1]

    config = EdgeConfig.model_validate(
        {"id": "edge-1", "devices": ["device-1"], "model": _MODEL, "overlay": {"budget": "time"}}
    )
    size = 4 * _SAMPLES * int(np.prod(split_network.split_shape(_MODEL)))
    with mock.patch.object(threading, "Lock", make):
        disk = DiskCache(folder, durability="group")
        cache = ReplayCache(disk, _BATCHES * size // 10, 0)
    with disk, contextlib.closing(cache):
        node = EdgeNode(config, cache, Journal())
        list(node.handle(RunState("run", 1, 2**20, "training"), 0.0))
        yield node, locks


def _measure(node: EdgeNode, locks: list[Timed], seconds: float) -> dict[str, Any]:
    random = np.random.default_rng(0)
    shape = (_SAMPLES, *split_network.split_shape(_MODEL))
    codec = Tap().codec.removesuffix("-delta")
    coded = [Packed(np.maximum(random.standard_normal(shape, np.float32), 0), codec) for _ in range(_VERSIONS)]
    labels = np.arange(_SAMPLES, dtype="<i4") % 10
    stop, counts = threading.Event(), {"received": 0, "steps": 0}
    slowest = {"received": 0.0, "steps": 0.0}

    def receive() -> None:
        version = 0
        while not stop.is_set():
            version += 1
            for number in range(_BATCHES):
                if stop.is_set():
                    return
                began = time.perf_counter()
                packed = Packed(coded[version % _VERSIONS].data())
                batch = ActivationBatch("run", "edge-1", "device-1", number, version, packed, labels)
                list(node.handle(batch, 0.0))
                if number % 8 == 7:
                    node.settle()
                counts["received"] += 1
                slowest["received"] = max(slowest["received"], time.perf_counter() - began)

    def train() -> None:
        while not stop.is_set():
            began = time.perf_counter()
            counts["steps"] += len(list(node.work(0.0)))
            slowest["steps"] = max(slowest["steps"], time.perf_counter() - began)

    works = {"receiving": receive, "training": train}
    threads = [threading.Thread(target=work, name=name) for name, work in works.items()]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    waited: dict[str, Any] = {"locks": len(locks), **counts}
    for name in ("receiving", "training"):
        waits = np.array([wait for lock in locks for wait in list(lock.waits[name])]) * 1e3
        held = np.array([hold for lock in locks for hold in list(lock.held[name])]) * 1e3
        waited[f"{name}_waits"] = len(waits)
        waited[f"{name}_longest_ms"] = round(float(waits.max()), 2)
        waited[f"{name}_999_ms"] = round(float(np.quantile(waits, 0.999)), 3)
        waited[f"{name}_held_ms"] = round(float(held.max()), 2)
    waited |= {f"slowest_{name}_ms": round(1e3 * value, 1) for name, value in slowest.items()}
    return waited


if __name__ == "__main__":
    main()
