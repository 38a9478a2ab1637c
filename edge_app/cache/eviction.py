"""Which batches are removed when the disk's budget is full. Not thread-safe: the disk cache holds its lock.

From which device: from the one that holds most bytes, so that no device loses what is within its fair share, budget /
devices, to what another one sends. Which of its batches: the one of the lowest rank, which a policy gives. Finding a
batch takes O(log of the device's batches), finding the device O(devices).
"""

import heapq
import math
import struct
from collections.abc import Callable, Container

from edge_app.cache.index import Index, Key

_BATCH = 2**64 - 1


class Policy:
    """Gives ranks, whole numbers below 2**64; the lowest is removed first, among equals the lowest batch number. This one:
    the oldest version first."""

    def stored(self, version: int, turn: int) -> int:
        """Of what is stored as the `turn`-th, counted on through restarts."""
        del turn
        return version

    def trained(self, rank: int, loss: float) -> int:
        """Of what had `rank` and was trained on with this loss."""
        del loss
        return rank


class Fifo(Policy):
    """What was stored first; a new version of a batch is stored anew."""

    def stored(self, version: int, turn: int) -> int:
        del version
        return turn


class LowestLoss(Policy):
    """What the overlay has learnt best. Versions not trained on yet come last, the oldest of them first; so do all after a
    restart, since losses are not stored."""

    _INFINITY = 0x7FF << 52  # floats that are not negative are ordered as their bits are

    def stored(self, version: int, turn: int) -> int:
        del turn
        return self._INFINITY + min(version, self._INFINITY)

    def trained(self, rank: int, loss: float) -> int:
        if not math.isfinite(loss):
            return rank
        bits: int = struct.unpack("<Q", struct.pack("<d", max(loss, 0.0)))[0]
        return bits


POLICIES: dict[str, Policy] = {"oldest": Policy(), "fifo": Fifo(), "lowest-loss": LowestLoss()}


class Evictor:
    """For the batches of `index`, whose rows carry their ranks. `budget` in bytes."""

    def __init__(self, index: Index, budget: int) -> None:
        self._index, self._budget = index, budget
        # rank << 64 | batch, outdated ones too; only of devices that had to give.
        self._heaps: dict[str, list[int]] = {}

    def ranked(self, key: Key, rank: int) -> None:
        """The row of `key` has this rank now."""
        device, batch = key
        heap = self._heaps.get(device)
        if heap is None:
            return
        if len(heap) > 2 * self._index.count(device) + 64:
            del self._heaps[device]  # mostly outdated: made anew when it is needed
        else:
            heapq.heappush(heap, rank << 64 | batch)

    def victims(self, coming: Key | None, more: int, freed: Callable[[Key], int]) -> list[Key] | None:
        """What has to be removed to make room for `more` bytes of `coming`, never `coming` itself; the caller removes them all.
        `freed`: bytes that the loss of a key frees. None where a device would lose what is within its share.
        """
        excess = self._index.total + more - self._budget
        if excess <= 0:
            return []
        held = dict(self._index.held)
        own = coming[0] if coming else ""
        if coming:
            held[own] = held.get(own, 0) + more
        share = self._budget / max(len(held), 1)
        taken: dict[Key, int] = {}
        while excess > 0:
            device = self._donor(held, share, own)
            if device is None:
                for (name, _), item in taken.items():
                    heapq.heappush(self._heaps[name], item)
                return None
            lowest = self._lowest(device, coming, taken)
            if lowest is None:  # it holds only `coming`, or older versions that wait for a sync
                del held[device]
                continue
            key, taken[key] = lowest
            size = freed(key)
            held[device] -= size
            excess -= size
        return list(taken)

    @staticmethod
    def _donor(held: dict[str, int], share: float, own: str) -> str | None:
        most = max(held, key=held.__getitem__, default=own)
        if held.get(most, 0) <= share:
            most = own
        return most if most in held else None

    def _lowest(self, device: str, coming: Key | None, taken: Container[Key]) -> tuple[Key, int] | None:
        """The batch of the lowest rank, and its item, which is off the heap."""
        heap = self._heap(device)
        kept = []
        lowest = None
        while heap and lowest is None:
            item = heapq.heappop(heap)
            key = (device, item & _BATCH)
            row = self._index.get(key)
            if row is None or row.rank != item >> 64 or key in taken:
                continue
            if key == coming:
                kept.append(item)
            else:
                lowest = key, item
        for item in kept:
            heapq.heappush(heap, item)
        return lowest

    def _heap(self, device: str) -> list[int]:
        if device not in self._heaps:
            heap = [row.rank << 64 | batch for batch, row in self._index.of(device)]
            heapq.heapify(heap)
            self._heaps[device] = heap
        return self._heaps[device]
