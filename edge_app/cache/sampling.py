"""Which batch the overlay trains on next. Not thread-safe: the replay cache holds its lock.

`Sampler` says which device is next. Of the N batches that it has in the cache the next one is

    mixed        the newest that was never trained on; when there is none, each with 1/N  (paper, section IV-B)
    uniform      each with 1/N
    importance   each with FLOOR/N + (1 - FLOOR) * its loss / sum of losses: harder ones more often
    fresh        each with FLOOR/N + (1 - FLOOR) * h / sum of h, h = 2 ** (-age in versions / HALF_LIFE)

The loss is a batch's own when it was trained on, averaged over the last times; an unknown one counts as the highest known.
After Katharopoulos & Fleuret 2018 (arXiv 1803.00942), who sample by a bound of the gradient's norm and name the loss as
its cheaper stand-in. The weight 1 / (N p) keeps the expected gradient that of uniform sampling; FLOOR bounds it by
1 / FLOOR, and starves nothing. All randomness comes from one generator: same calls, same keys.
"""

import heapq
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_app.cache import batch_records
from edge_app.cache.batch_records import BatchRecords
from edge_app.cache.index import Key
from edge_app.cache.sum_tree import SumTree
from emo.errors import CacheError

FLOOR = 0.2
HALF_LIFE = 8
_TIMES = 4  # new batches of a device, relative to the median device
_NOTHING = 1e-300  # a loss below is 0: sums of such have no digits to draw by
_STEEPEST = 500  # powers of two between the base and the newest version; a float has 1,000


class Uniform(BatchRecords):
    """Each with 1/N. Base of the others, which override `pick`."""

    def __init__(self, random: np.random.Generator) -> None:
        super().__init__()
        self._random = random

    def pick(self) -> tuple[Key, float] | None:
        """The next key and the weight of its loss, 1 on average; None when there is none."""
        return (self._keys[self._random.integers(len(self))], 1.0) if len(self) else None


class Importance(Uniform):
    def __init__(self, random: np.random.Generator) -> None:
        super().__init__(random)
        # The loss of a batch stands in the first, with 0 in the second; an unknown one is 0 in the first and 1 in the second.
        self._losses, self._unknown = SumTree(), SumTree()
        self._highest = 0.0

    def pick(self) -> tuple[Key, float] | None:
        if not len(self):
            return None
        highest = self._highest or 1.0  # none is known: all are equal
        total = self._losses.total + self._unknown.total * highest
        if not total:  # all are known to be 0
            return super().pick()
        place = int(self._random.integers(len(self)))
        if self._random.random() >= FLOOR:
            draw = self._random.random() * total
            known = draw < self._losses.total
            place = self._losses.find(draw) if known else self._unknown.find((draw - self._losses.total) / highest)
        loss = self._losses[place] + self._unknown[place] * highest
        return self._keys[place], 1 / (FLOOR + (1 - FLOOR) * loss / total * len(self))

    def clear(self) -> None:
        super().clear()
        self._losses, self._unknown, self._highest = SumTree(), SumTree(), 0.0

    def _changed(self, place: int) -> None:
        here = place < len(self)
        loss = float(self._rows["loss"][place]) if here else 0.0
        before, unknown = self._losses[place], math.isnan(loss)
        self._losses[place] = 0.0 if unknown or loss < _NOTHING else loss
        self._unknown[place] = float(unknown)
        if self._losses[place] >= self._highest:
            self._highest = self._losses[place]
        elif before == self._highest:  # it was the highest, or is one of several
            self._highest = float(np.fmax.reduce(self._rows["loss"][: len(self)], initial=0.0))


class Fresh(Uniform):
    def __init__(self, random: np.random.Generator) -> None:
        super().__init__(random)
        # Weights are relative to the version `_base`, a whole number of half-lives.
        self._tree, self._base = SumTree(), 0

    def pick(self) -> tuple[Key, float] | None:
        if not len(self):
            return None
        if not self._tree.total:  # only much older ones are left
            self._rebase(int(self._rows["version"][: len(self)].max()))
        place = int(self._random.integers(len(self)))
        if self._random.random() >= FLOOR:
            place = self._tree.find(self._random.random() * self._tree.total)
        return self._keys[place], 1.0

    def clear(self) -> None:
        super().clear()
        self._tree, self._base = SumTree(), 0

    def _changed(self, place: int) -> None:
        if place >= len(self):
            self._tree[place] = 0.0
            return
        version = int(self._rows["version"][place])
        if version - self._base > _STEEPEST * HALF_LIFE:
            self._rebase(version)
        else:
            self._tree[place] = float(np.exp2((version - self._base) / HALF_LIFE))

    def _rebase(self, version: int) -> None:
        self._base = version - version % HALF_LIFE
        versions = self._rows["version"][: len(self)].astype(np.float64)
        self._tree.fill(np.exp2((versions - self._base) / HALF_LIFE))


class Sampler:
    """The batches of all devices, those of each in a `kind` of its own.

    Each device is drawn equally often, whatever numbers of batches, versions or losses it claims; one with fewer batches than
    the median device, less often in proportion. `first`: new batches come before all others, from each device in turn, as
    long as it has not had more than four times as many new ones as the median device.
    """

    def __init__(self, random: np.random.Generator, kind: type[Uniform], *, first: bool = False) -> None:
        self._random, self._kind, self._first = random, kind, first
        self.clear()

    def clear(self) -> None:
        self._devices: dict[str, Uniform] = {}
        self._given: dict[str, int] = {}  # new ones so far, by device
        self._count = 0

    @property
    def fresh(self) -> int:
        return sum(batches.fresh for batches in self._devices.values())

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: Key) -> bool:
        return key[0] in self._devices and key in self._devices[key[0]]

    def version(self, key: Key) -> int | None:
        return self._devices[key[0]].version(key) if key[0] in self._devices else None

    def add(self, key: Key, version: int) -> None:
        if key[0] not in self._devices:
            self._devices[key[0]] = self._kind(self._random)
        self._count += key not in self
        self._devices[key[0]].add(key, version)

    def remove(self, key: Key) -> None:
        if key in self:
            self._count -= 1
            self._devices[key[0]].remove(key)

    def trained(self, key: Key, loss: float) -> None:
        if key in self:
            self._devices[key[0]].trained(key, loss)

    def column(self, name: str) -> NDArray[Any]:
        return np.concatenate(
            [BatchRecords().column(name), *(batches.column(name) for batches in self._devices.values())]
        )

    def pick(self) -> tuple[Key, float] | None:
        """The next key and the weight of its loss, 1 on average; None when there is none."""
        for key in self.due(1):
            self._devices[key[0]].seen(key)
            self._given[key[0]] = self._given.get(key[0], 0) + 1
            return key, 1.0
        if not self._count:
            return None
        counts = np.array([len(batches) for batches in self._devices.values()])
        held = np.sort(counts[counts > 0])
        ends = np.cumsum(np.minimum(counts, held[(len(held) - 1) // 2]))
        place = int(np.searchsorted(ends, self._random.random() * ends[-1], side="right"))
        return list(self._devices.values())[place].pick()

    def due(self, count: int) -> list[Key]:
        """What `pick` names next, whatever chance has; beyond the first, if nothing else happens. At most `count`, in order."""
        new = {device: batches for device, batches in self._devices.items() if batches.fresh} if self._first else {}
        if not new:
            return []
        had = sorted(given for given in self._given.values() if given)
        most = _TIMES * had[(len(had) - 1) // 2] if had else 0
        turns = [
            (given + place, order, key)
            for order, (device, batches) in enumerate(new.items())
            for given in (self._given.get(device, 0),)
            for place, key in enumerate(batches.newest(count))
            if given + place <= most or not had
        ]
        return [key for *_, key in heapq.nsmallest(count, turns)]

    def state(self) -> dict[str, Any]:
        return {
            "given": dict(self._given),
            "random": self._random.bit_generator.state,
            "of": {device: batches.state() for device, batches in self._devices.items()},
        }

    def resume(self, state: dict[str, Any]) -> None:
        """As BatchRecords.resume; with the same batches `pick` then names the same keys."""
        before = self._random.bit_generator.state
        devices: dict[str, Uniform] = {}
        try:
            for device, records in state["of"].items():
                devices[device] = self._kind(self._random)
                for key, version in self._versions(device):
                    devices[device].add(key, version)
                devices[device].resume(records)
            given = {str(device): int(count) for device, count in state["given"].items()}
            self._random.bit_generator.state = state["random"]
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            self._random.bit_generator.state = before
            raise CacheError(f"the state of the sampling is damaged: {error!r}") from error
        self._devices = {**devices, **{d: kept for d, kept in self._devices.items() if d not in devices}}
        self._given = given

    def _versions(self, device: str) -> list[tuple[Key, int]]:
        batches = self._devices.get(device)
        return [(key, batches.version(key) or 0) for key in batches.keys()] if batches else []  # noqa: SIM118 - a method of ours


def as_json(state: dict[str, Any]) -> dict[str, Any]:
    """A `state` with its rows as text; as batch_records.as_json."""
    return {
        **state,
        "of": {device: batch_records.as_json(records) for device, records in state["of"].items()},
    }


POLICIES: dict[str, Callable[[np.random.Generator], Sampler]] = {
    "mixed": partial(Sampler, kind=Uniform, first=True),
    "uniform": partial(Sampler, kind=Uniform),
    "importance": partial(Sampler, kind=Importance),
    "fresh": partial(Sampler, kind=Fresh),
}
