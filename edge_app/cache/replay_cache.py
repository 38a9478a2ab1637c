"""The activation replay cache (paper, section IV-B): takes batches from devices, gives them to the overlay.

It joins disk, memory, sampling and prefetch. It never waits for a batch: one that is not there is None.

One thread receives (`put`, `get`, `begin`, `flush`), one trains (`sample`, `trained`, `state`); a third, of the
cache's own, fetches what will be sampled next. Any may ask for what is seen from outside. Locks:

    ReplayCache._lock   sampler and its records, plan, which batch is in which slot of level 1, counters
    DiskCache._lock     the index of files

Both are held for dictionary work and for copies of a few numbers a batch; not during disk I/O, decoding or the copy
of a batch; and the first is never held while the second is taken. So a batch may change while `sample` reads it:
level 1 takes only what is still the newest, and the newer one stays fresh. `sample` waits for the third thread only
where that is reading the very batch it needs.

What `sample` returns depends on the calls before it, on no thread's timing: only `sample` draws what comes next, and the third
thread moves tensors, nothing else. (One exception: a file that turns out damaged.)
"""

import math
import threading
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edge_app.cache.batch_files import Entry
from edge_app.cache.disk import DiskCache
from edge_app.cache.index import Key
from edge_app.cache.prefetch import Plan, Prefetcher
from edge_app.cache.sampling import POLICIES, as_json
from edge_app.cache.tensor_slots import Sample, Slot, TensorSlots, tensor

__all__ = ["ReplayCache", "Sample"]

Array = NDArray[Any]


class ReplayCache:
    """`memory_bytes`: size of level 1 on `device`, where the overlay trains; with `memory_share` it holds no more than
    that share of the batches either. `sampling`: one of sampling.POLICIES, `seed` its chance. `prefetch`: whether there
    is a third thread; it starts when level 1 lacks something, and ends with `close`.

    What `disk` holds already counts as never trained on, the newest version as what came last. The cache sets
    `disk.on_evict`.
    """

    def __init__(
        self,
        disk: DiskCache,
        memory_bytes: int,
        seed: int,
        device: torch.device | str = "cpu",
        sampling: str = "mixed",
        memory_share: float | None = None,
        *,
        prefetch: bool = True,
    ) -> None:
        self._disk, self._device, self._share = disk, torch.device(device), memory_share
        self._lock = threading.Lock()
        self._memory = TensorSlots(memory_bytes, device)
        self._sampler = POLICIES[sampling](np.random.default_rng(seed))
        self._plan = Plan(self._sampler)
        self._prefetcher = Prefetcher(self._lock, disk, self._memory, self._sampler, self._plan)
        self._prefetch = prefetch
        self._counts = dict.fromkeys(("memory_hits", "disk_reads", "trained"), 0)
        self._starved_s = 0.0
        disk.on_evict = self._evicted
        for key in disk.keys():  # noqa: SIM118 - a method of ours that lists, not a mapping's
            self._sampler.add(key, disk.version(*key) or 0)
        self._hold()

    # -- receiving

    def put(
        self,
        device: str,
        batch: int,
        version: int,
        activations: Array,
        labels: Array,
        encoded: bytes | None = None,
    ) -> bool:
        """Store a batch; on return it is on the disk, as durably as `disk` has it. False unless `version` is newer
        than the stored one.

        `activations` (N, ...) floats, `labels` (N, ...) integers. `encoded`: the same activations as a full frame of
        emo.wire.codec, stored in their place; the array then only goes to level 1, if it fits. Raises CacheError when they
        cannot be stored: what was there before is intact.
        """
        stored = activations if encoded is None else encoded
        if not self._disk.put(device, batch, version, stored, labels):
            return False
        key = (device, batch)
        with self._lock:
            self._memory.drop(key)
            self._prefetcher.forget(key)
            self._sampler.add(key, version)
            self._hold()
            runs = self._prefetcher.runs
        self._prefetcher.place(Entry(device, batch, version, activations, labels), runs)
        return True

    def get(self, device: str, batch: int) -> Entry | None:
        """The stored version as arrays, for comparison; out of level 1 where that is RAM and has it.

        Raises CacheError when the disk cannot be read.
        """
        with self._lock:
            slot = self._memory.use((device, batch)) if self._device.type == "cpu" else None
        if slot is not None:
            version, activations, labels = self._read(slot)
            if version == self._disk.version(device, batch):  # a sync that failed leaves the one before
                return Entry(device, batch, version, activations.numpy(), labels.numpy())
        return self._disk.get(device, batch)

    def begin(self, run: str) -> None:
        """Forget and remove every batch, unless they are of `run`. A `sample` under way may return an old one."""
        if self._disk.begin(run):
            with self._lock:
                self._sampler.clear()
                self._plan.clear()
                self._memory.clear()
                self._prefetcher.begin()
                self._hold()

    def flush(self) -> None:
        """On return every `put` so far is on the disk."""
        self._disk.flush()

    # -- training

    def sample(self) -> Sample | None:
        """The next batch to train on; None when the cache is empty.

        A copy out of level 1 when it is there, else from the disk, and placed in level 1. A damaged file is
        skipped and forgotten. Raises CacheError when the disk cannot be read.
        """
        while True:
            with self._lock:
                planned = self._plan.next()
                if planned is None:
                    return None
                key, weight = planned
                expected = self._sampler.version(key)
                slot = self._memory.use(key)
                lacking = self._prefetch and self._prefetcher.lacking() is not None
            if lacking:
                self._prefetcher.wake()
            sample = self._copied(key, slot, weight) if slot else self._late(key, weight)
            if sample is not None:
                return sample
            self._lost(key, expected)

    def trained(self, sample: Sample, loss: float) -> None:
        """Note, for sampling, eviction and the counts, that `sample` was trained on: with this mean loss before the step, not
        weighted; NaN where the step was refused. Nothing is noted of a version that is no longer the newest.
        """
        key = (sample.device, sample.batch)
        with self._lock:
            known = self._sampler.version(key) == sample.version
            if known:
                self._sampler.trained(key, loss)
                self._counts["trained"] += 1
        if known and math.isfinite(loss):
            self._disk.note_loss(*key, loss)

    def set_aside(self, sample: Sample) -> None:
        """Drop `sample` until a newer version comes. Its file is kept with the damaged ones."""
        key = (sample.device, sample.batch)
        with self._lock:
            if self._sampler.version(key) != sample.version:
                return
            self._forget(key)
        self._disk.set_aside(*key, sample.version)

    def state(self) -> dict[str, Any]:
        """What `resume` needs to go on with the same samples, as JSON has it."""
        with self._lock:
            sampler, plan = self._sampler.state(), self._plan.state()
        return {"sampler": as_json(sampler), "plan": plan}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from `state()` of a cache over this disk, before anything is sampled. Batches that came since are fresh, those
        that are gone are skipped. Raises CacheError, and changes nothing, when it is damaged.
        """
        with self._lock:
            before = self._plan.state()
            self._plan.resume(state.get("plan", []))
            try:
                self._sampler.resume(state.get("sampler", {}))
            except BaseException:
                self._plan.resume(before)
                raise

    def close(self) -> None:
        """Ends the third thread; harmless twice. Sampling goes on without it."""
        self._prefetcher.close()

    # -- seen from outside

    def stats(self) -> dict[str, int]:
        """What DiskCache.stats says, and since the start: `memory_hits` (samples from level 1) `disk_reads` (samples
        that were not there in time) `prefetched trained starved_us` (that training waited for `disk_reads`); now:
        `memory_entries memory_bytes` (allocated) and `fresh`: batches never trained on.
        """
        with self._lock:
            own = {
                "memory_entries": len(self._memory),
                "memory_bytes": self._memory.nbytes,
                "fresh": self._sampler.fresh,
                "starved_us": round(1e6 * self._starved_s),
                "prefetched": self._prefetcher.fetched,
                **self._counts,
            }
        return {**self._disk.stats(), **own}

    def ages(self, newest_version: int) -> dict[int, int]:
        """How many batches are 0, 1, 2-3, 4-7, ... versions older than that: least age -> batches. Newer ones are 0."""
        with self._lock:
            versions = self._sampler.column("version")
        newest = np.uint64(newest_version)
        return _histogram(np.where(versions < newest, newest - versions, 0))

    def trained_counts(self) -> dict[int, int]:
        """How many batches were trained on 0, 1, 2-3, 4-7, ... times in their version: least count -> batches."""
        with self._lock:
            counts = self._sampler.column("trained")
        return _histogram(counts)

    # -- inside

    def _copied(self, key: Key, slot: Slot, weight: float) -> Sample:
        version, activations, labels = self._read(slot)
        with self._lock:
            self._counts["memory_hits"] += 1
        return Sample(*key, version, activations, labels, weight)

    def _read(self, slot: Slot) -> tuple[int, torch.Tensor, torch.Tensor]:
        """Version, and copies of activations and labels, of a slot in use; then released."""
        version, tensors = slot.version, self._memory.read(slot)
        with self._lock:
            self._memory.release(slot)
        return version, *tensors

    def _late(self, key: Key, weight: float) -> Sample | None:
        """From the disk; None when the file is not there or damaged."""
        began = time.perf_counter()
        try:
            self._prefetcher.wait(key)
            with self._lock:
                slot, runs = self._memory.use(key), self._prefetcher.runs
            if slot is not None:
                return self._copied(key, slot, weight)
            entry = self._disk.get(*key)
            if entry is None:
                return None
            self._prefetcher.place(entry, runs)
            activations = tensor(entry.activations, np.float32).to(self._device)
            labels = tensor(entry.labels, np.int64).to(self._device)
            with self._lock:
                self._counts["disk_reads"] += 1
            return Sample(*key, entry.version, activations, labels, weight)
        finally:
            self._starved_s += time.perf_counter() - began

    def _lost(self, key: Key, version: int | None) -> None:
        """Its file was damaged, or evicted; unless a newer one has come since."""
        with self._lock:
            if self._sampler.version(key) == version:
                self._forget(key)

    def _evicted(self, device: str, batch: int) -> None:
        with self._lock:
            self._forget((device, batch))

    def _forget(self, key: Key) -> None:
        self._sampler.remove(key)
        self._memory.drop(key)
        self._prefetcher.forget(key)
        self._hold()

    def _hold(self) -> None:
        if self._share is not None:
            self._memory.hold(int(self._share * len(self._sampler)))


def _histogram(values: NDArray[Any]) -> dict[int, int]:
    """Least value of 0, 1, 2-3, 4-7, ... -> how many."""
    _, bits = np.frexp(values.astype(np.float64))  # of a whole number: its length in bits
    return {1 << bit >> 1: int(count) for bit, count in enumerate(np.bincount(bits))}
