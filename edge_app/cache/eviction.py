"""What goes when the disk's budget is full.

Knows ranks, sizes and shares. Knows no file and no lock: whoever uses it holds one.

Two questions, answered apart. From which device: from the one that holds most, so that none loses what is within its
fair share, budget / devices, to what another one sends. Which of its batches: the one of the lowest rank,
and a rank is a policy's. Finding a batch costs O(log of the device's batches), finding the device O(devices).
"""

import heapq
import math
import struct
from collections.abc import Callable, Container

from edge_app.cache.index import Index, Key

_BATCH = 2**64 - 1


class Policy:
    """Gives ranks, whole numbers below 2**64; the lowest goes first. Among equals the lowest batch number."""

    def stored(self, version: int, turn: int) -> int:
        """Of what comes as the `turn`-th, counted on through restarts."""
        raise NotImplementedError

    def trained(self, rank: int, loss: float) -> int:
        """Of what had `rank` and was trained on with this loss."""
        del loss
        return rank


class Oldest(Policy):
    """The lowest version goes first."""

    def stored(self, version: int, turn: int) -> int:
        del turn
        return version


class Fifo(Policy):
    """What was stored first goes first; a new version of a batch is stored anew."""

    def stored(self, version: int, turn: int) -> int:
        del version
        return turn


class LowestLoss(Policy):
    """What the overlay has learnt best goes first. Versions not trained on yet come last, the oldest of them first: so do
    all after a restart, for losses are not stored."""

    _INFINITY = 0x7FF << 52  # floats that are not negative are ordered as their bits are

    def stored(self, version: int, turn: int) -> int:
        del turn
        return self._INFINITY + min(version, self._INFINITY)

    def trained(self, rank: int, loss: float) -> int:
        if not math.isfinite(loss):
            return rank
        bits: int = struct.unpack("<Q", struct.pack("<d", max(loss, 0.0)))[0]
        return bits


POLICIES: dict[str, Policy] = {"oldest": Oldest(), "fifo": Fifo(), "lowest-loss": LowestLoss()}


class Evictor:
    """For the batches of `index`, whose rows carry their ranks. `budget` in bytes."""

    def __init__(self, index: Index, budget: int) -> None:
        self._index, self._budget = index, budget
        # Of devices that had to give: rank << 64 | batch, also what is outdated.
        self._heaps: dict[str, list[int]] = {}

    def ranked(self, key: Key, rank: int) -> None:
        """Its row has this rank now."""
        device, batch = key
        heap = self._heaps.get(device)
        if heap is None:
            return
        if len(heap) > 2 * self._index.count(device) + 64:
            del self._heaps[device]  # mostly outdated: made anew when it is needed
        else:
            heapq.heappush(heap, rank << 64 | batch)

    def victims(self, coming: Key | None, more: int, freed: Callable[[Key], int]) -> list[Key] | None:
        """What has to go so that `more` bytes of `coming` have room, `coming` itself never. `freed`: by the loss of a key.

        None where that would take something from a device that is within its share. The caller gives them all up.
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
            found = self._lowest(device, coming, taken)
            if found is None:  # what it holds is `coming`, or older versions that wait for a sync
                del held[device]
                continue
            key, taken[key] = found
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
        """The next to go, and its item off the heap."""
        heap = self._heap(device)
        kept = []
        found = None
        while heap and found is None:
            item = heapq.heappop(heap)
            key = (device, item & _BATCH)
            row = self._index.get(key)
            if row is None or row.rank != item >> 64 or key in taken:
                continue
            if key == coming:
                kept.append(item)
            else:
                found = key, item
        for item in kept:
            heapq.heappush(heap, item)
        return found

    def _heap(self, device: str) -> list[int]:
        if device not in self._heaps:
            heap = [row.rank << 64 | batch for batch, row in self._index.of(device)]
            heapq.heapify(heap)
            self._heaps[device] = heap
        return self._heaps[device]
