"""What will be trained on next, and a thread that fetches it from the disk while training goes on."""

import contextlib
import math
import threading
from collections import deque
from typing import Any

from edge_app.cache.batch_files import Entry
from edge_app.cache.disk import DiskCache
from edge_app.cache.index import Key
from edge_app.cache.sampling import Sampler
from edge_app.cache.tensor_slots import Shapes, TensorSlots
from emo.errors import CacheError

AHEAD = 32  # batches: eight steps of four


class Plan:
    """The sampler's picks, drawn ahead of their use: each `next` draws one more; `ahead` changes nothing.

    What is due goes before what was planned. A planned batch that is gone is skipped; of one with a new version, that is
    used. Not thread-safe: the replay cache holds its lock.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._planned: deque[tuple[Key, float]] = deque()

    def next(self) -> tuple[Key, float] | None:
        """Key and weight, as Sampler.pick."""
        if self._sampler.due(1):
            picked = self._sampler.pick()
        else:
            self._fill()
            picked = self._planned.popleft() if self._planned else None
        if not self._sampler.due(1):
            self._fill()
        return picked

    def ahead(self) -> list[Key]:
        """What `next` will name if nothing changes: at most AHEAD, in order, a key as often as it comes."""
        due = self._sampler.due(AHEAD)
        return (due + [key for key, _ in self._planned if key in self._sampler])[:AHEAD]

    def clear(self) -> None:
        self._planned.clear()

    def _fill(self) -> None:
        self._planned = deque(planned for planned in self._planned if planned[0] in self._sampler)
        while len(self._planned) < min(AHEAD, len(self._sampler)):
            picked = self._sampler.pick()
            if picked is None:
                return
            self._planned.append(picked)

    def state(self) -> list[list[Any]]:
        """As JSON has it."""
        return [[*key, weight] for key, weight in self._planned]

    def resume(self, state: list[list[Any]]) -> None:
        """Raises CacheError, and changes nothing, when `state` is not what `state()` gave."""
        try:
            planned = [((str(device), int(batch)), float(weight)) for device, batch, weight in state]
        except (TypeError, ValueError, OverflowError) as error:
            raise CacheError(f"the plan of the sampling is damaged: {error}") from error
        if len(planned) > AHEAD or not all(0 < weight < math.inf for _, weight in planned):
            raise CacheError("the plan of the sampling is damaged: it is too long, or a weight is not above 0")
        self._planned = deque(planned)


class Prefetcher:
    """Fills level 1: `place` with a batch that is at hand, and a thread, after `wake`, with what is `lacking`.

    `lock` is the replay cache's; `lacking`, `forget` and `begin` are called with it held, the others without. The thread moves
    tensors and draws nothing. A file that it cannot read is left to `sample`, which meets the same error.
    """

    def __init__(
        self, lock: threading.Lock, disk: DiskCache, memory: TensorSlots, sampler: Sampler, plan: Plan
    ) -> None:
        self._lock, self._disk, self._memory, self._sampler, self._plan = lock, disk, memory, sampler, plan
        self._loaded = threading.Condition(lock)  # one of `_loading` is done
        self._loading: set[Key] = set()
        # (version, pool): the disk does not have that version, or no slot of that pool takes it. Not to be tried again.
        self._unfit: dict[Key, tuple[int | None, int]] = {}
        self._wanted, self._closed = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self.runs = 0  # how many have begun: a batch that was read in an earlier one is of no use any more
        self.fetched = 0

    def lacking(self) -> Key | None:
        """The batch that will be needed first and is not in level 1, if there is room for it."""
        ahead = self._plan.ahead()
        for key in ahead:
            unfit = self._unfit.get(key) == (self._sampler.version(key), self._memory.pool)
            if key not in self._memory and key not in self._loading and not unfit:
                return key if self._memory.has_room(key, ahead) else None
        return None

    def forget(self, key: Key) -> None:
        """`key` is gone, or has a new version."""
        self._unfit.pop(key, None)

    def begin(self) -> None:
        self._unfit.clear()
        self.runs += 1

    def place(self, entry: Entry, runs: int) -> bool:
        """Put `entry` into level 1; False when there is a newer version, or no room. `runs`: as it was when it was read."""
        key, newest = (entry.device, entry.batch), False
        with self._lock:
            if self.runs != runs or self._sampler.version(key) != entry.version:
                return False
            if key in self._memory:
                return True
            slot = self._memory.reserve(key, _shapes(entry), self._plan.ahead())
        if slot is None:
            return False
        try:
            self._memory.write(slot, entry.activations, entry.labels)
            newest = True
        finally:
            with self._lock:
                newest &= self._sampler.version(key) == entry.version
                placed = newest and self._memory.commit(slot, key, entry.version)
                self._memory.release(slot)
        return placed

    def wait(self, key: Key) -> None:
        """Until the thread is not reading `key`."""
        with self._loaded:
            while key in self._loading:
                self._loaded.wait()

    def wake(self) -> None:
        """One thread at a time may call this."""
        if not self._closed:
            if self._thread.ident is None:
                self._thread.start()
            self._wanted.set()

    def close(self) -> None:
        """Waits for the batch under way, but not for a disk that hangs; harmless twice."""
        self._closed = True
        self._wanted.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._closed:
            self._wanted.wait()
            self._wanted.clear()
            with contextlib.suppress(CacheError):
                while not self._closed and self._fetch():
                    pass

    def _fetch(self) -> bool:
        """Fetch the first batch that is lacking; False when there is none."""
        with self._lock:
            key, runs = self.lacking(), self.runs
            if key is None:
                return False
            version, pool = self._sampler.version(key), self._memory.pool
            self._loading.add(key)
        fits = placed = False
        try:
            entry = self._disk.get(*key)
            if entry is not None and entry.version == version:
                with self._lock:  # level 1 is not made anew for what may never be needed
                    fits = self._memory.takes(_shapes(entry))
                placed = fits and self.place(entry, runs)
        finally:
            with self._loaded:
                self._loading.discard(key)
                self.fetched += placed
                if not fits:
                    self._unfit[key] = version, pool
                self._loaded.notify_all()
        return True


def _shapes(entry: Entry) -> Shapes:
    return entry.activations.shape, entry.labels.shape
