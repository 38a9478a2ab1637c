"""The activation replay cache (paper, section IV-B): takes batches from devices, gives them to the overlay.

Knows which version of a batch is the newest and joins disk, memory and sampling. Knows no message,
no score and no training. It never waits for a batch: what is not there is None.

One thread receives (`put`, `get`, `begin`), one trains (`sample`); any may ask for `stats`. Locks:

    ReplayCache._lock   newest versions, sampler, level 1, counters; held for dictionary work only
    DiskCache._lock     the index of files; held for dictionary work only

Neither is held during disk I/O or while a tensor is copied, and the first is never held while the
second is taken. So a batch may change while `sample` reads it: level 1 takes only what is still the
newest, and the newer one stays fresh.
"""

import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edge_app.cache.disk import DiskCache, Entry
from edge_app.cache.memory import Key, Memory, Sample
from edge_app.cache.sampling import Mixed

__all__ = ["DiskCache", "Entry", "ReplayCache", "Sample"]

Array = NDArray[Any]


class ReplayCache:
    """`memory_bytes`: size of level 1 on `device`, where the overlay trains. `seed`: of the sampling.

    What `disk` holds already counts as never trained on, the newest version as the newest.
    """

    def __init__(
        self, disk: DiskCache, memory_bytes: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self._disk = disk
        self._device = torch.device(device)
        self._lock = threading.Lock()
        self._memory = Memory(memory_bytes)
        self._sampler = Mixed(np.random.default_rng(seed))
        self._newest: dict[Key, int] = {}
        self._counts = dict.fromkeys(("memory_hits", "disk_reads"), 0)
        for key in disk.keys():  # noqa: SIM118 - a method of ours that lists, not a mapping's
            self._note(key, disk.version(*key) or 0)

    def put(self, device: str, batch: int, version: int, activations: Array, labels: Array) -> bool:
        """Store a batch; on return it is on the disk. False unless `version` is newer than the stored one.

        `activations` (N, ...) floats, `labels` (N, ...) integers. Raises CacheError when they cannot
        be stored: what was there before is intact.
        """
        if not self._disk.put(device, batch, version, activations, labels):
            return False
        with self._lock:
            self._note((device, batch), version)
        return True

    def get(self, device: str, batch: int) -> Entry | None:
        """The stored version as arrays, for comparison. Raises CacheError when the disk cannot be read."""
        return self._disk.get(device, batch)

    def sample(self) -> Sample | None:
        """The next batch to train on, noted as trained on; None when the cache is empty.

        Comes from level 1 when it is there, else from the disk, and is placed in level 1. A damaged
        file is skipped and forgotten. Raises CacheError when the disk cannot be read.
        """
        while True:
            with self._lock:
                key = self._sampler.pick()
                if key is None:
                    return None
                expected, sample = self._newest[key], self._memory.use(key)
                self._counts["memory_hits" if sample else "disk_reads"] += 1
            if sample is not None:
                return sample
            entry = self._disk.get(*key)
            if entry is None:
                self._lost(key, expected)
                continue
            sample = self._to_tensors(entry)
            with self._lock:
                if self._newest.get(key) == entry.version:
                    self._memory.place(key, sample)
            return sample

    def begin(self, run: str) -> None:
        """Forget and remove every batch, unless they are of `run`. A `sample` under way may return an old one."""
        if self._disk.begin(run):
            with self._lock:
                self._newest.clear()
                self._sampler.clear()
                self._memory.clear()

    def stats(self) -> dict[str, int]:
        """What DiskCache.stats says, and of level 1: `memory_entries memory_bytes memory_hits disk_reads`;
        `fresh`: batches never trained on.
        """
        with self._lock:
            own = {
                "memory_entries": len(self._memory),
                "memory_bytes": self._memory.nbytes,
                "fresh": self._sampler.fresh,
                **self._counts,
            }
        return {**self._disk.stats(), **own}

    def _note(self, key: Key, version: int) -> None:
        self._newest[key] = version
        self._sampler.add(key)
        self._memory.drop(key)

    def _lost(self, key: Key, version: int) -> None:
        """Its file was damaged; unless a newer one has come since."""
        with self._lock:
            if self._newest.get(key) == version:
                del self._newest[key]
                self._sampler.remove(key)

    def _to_tensors(self, entry: Entry) -> Sample:
        activations = torch.from_numpy(entry.activations).to(self._device, torch.float32)
        labels = torch.from_numpy(entry.labels).to(self._device, torch.int64)
        return Sample(entry.device, entry.batch, entry.version, activations, labels)
