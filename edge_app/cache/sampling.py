"""Which batch the overlay trains on next.

Knows the ledger of batches and the laws below. Knows no tensor and no disk. Not thread-safe: the cache around it
holds its lock. Which device is next says `Shares`; of the N batches that it has in the cache the next one is

    mixed        the newest that was never trained on; when there is none, each with 1/N  (paper, section IV-B)
    uniform      each with 1/N
    importance   each with FLOOR/N + (1 - FLOOR) * its loss / sum of losses: harder ones more often
    fresh        each with FLOOR/N + (1 - FLOOR) * h / sum of h, h = 2 ** (-age in versions / HALF_LIFE)

The loss is the one that the overlay had, averaged over its last times; one that is not known counts as the highest
known. After Katharopoulos & Fleuret 2018 (arXiv 1803.00942), who sample by a bound of the gradient's norm and
have the loss as its cheaper stand-in; the weight 1 / (N p) keeps the expected gradient that of uniform sampling.
FLOOR bounds it by 1 / FLOOR, and starves nothing. All chance comes from one generator: same calls, same keys.
"""

import heapq
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_app.cache import batch_records
from edge_app.cache.batch_records import Key, Ledger
from edge_app.cache.sum_tree import SumTree
from emo.errors import CacheError

FLOOR = 0.2
HALF_LIFE = 8
_TIMES = 4  # what the median device has had
_NOTHING = 1e-300  # a loss below is 0: sums of such have no digits to draw by
_STEEPEST = 500  # powers of two between the base and the newest version; a float has 1,000


class Sampler(Protocol):
    """What the cache asks of a policy; what is not said here is as in Ledger."""

    @property
    def fresh(self) -> int: ...
    def __len__(self) -> int: ...
    def __contains__(self, key: Key) -> bool: ...
    def version(self, key: Key) -> int | None: ...
    def add(self, key: Key, version: int) -> None: ...
    def remove(self, key: Key) -> None: ...
    def clear(self) -> None: ...
    def trained(self, key: Key, loss: float) -> None: ...
    def column(self, name: str) -> NDArray[Any]: ...
    def state(self) -> dict[str, Any]: ...
    def resume(self, state: dict[str, Any]) -> None: ...

    def pick(self) -> tuple[Key, float] | None:
        """The next key and the weight of its loss, 1 on average; None when there is none."""

    def due(self, count: int) -> list[Key]:
        """What `pick` names for certain, whatever chance has: at most `count`, in order."""


class Uniform(Ledger):
    """Each with 1/N. The base of the others, which change `pick`."""

    def __init__(self, random: np.random.Generator) -> None:
        super().__init__()
        self._random = random

    def pick(self) -> tuple[Key, float] | None:
        return (self._keys[self._random.integers(len(self))], 1.0) if len(self) else None

    def due(self, count: int) -> list[Key]:
        del count
        return []

    def state(self) -> dict[str, Any]:
        return {**super().state(), "random": self._random.bit_generator.state}

    def resume(self, state: dict[str, Any]) -> None:
        """As Ledger.resume; of the same batches `pick` then names the same keys."""
        before = self._random.bit_generator.state
        try:
            self._random.bit_generator.state = state["random"]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            self._random.bit_generator.state = before
            raise CacheError(f"the state of the sampling is damaged: {error!r}") from error
        try:
            super().resume(state)
        except CacheError:
            self._random.bit_generator.state = before
            raise


class Importance(Uniform):
    def __init__(self, random: np.random.Generator) -> None:
        super().__init__(random)
        self._losses, self._unknown = SumTree(), SumTree()  # of the others 0 in the first, 1 in the second
        self._highest = 0.0

    def pick(self) -> tuple[Key, float] | None:
        if not len(self):
            return None
        highest = self._highest or 1.0  # nothing is known: all are alike
        total = self._losses.total + self._unknown.total * highest
        if not total:  # all are known, and 0
            return super().pick()
        place = int(self._random.integers(len(self)))
        if self._random.random() >= FLOOR:
            draw = self._random.random() * total
            known = draw < self._losses.total
            place = (
                self._losses.find(draw)
                if known
                else self._unknown.find((draw - self._losses.total) / highest)
            )
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
        self._tree, self._base = (
            SumTree(),
            0,
        )  # weights are relative to a version, a whole number of half-lives

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


class Shares:
    """All devices' batches, each device with a `kind` of its own; the Sampler of a cache.

    Every device has the same part of what is drawn, whatever number of batches it has, or versions, or losses it claims;
    one with fewer batches than the median device has as much less. `first`: what is new comes before that, from each
    device in turn, as long as it has not had more than four times as many new ones as the median.
    """

    def __init__(self, random: np.random.Generator, kind: type[Uniform], *, first: bool = False) -> None:
        self._random, self._kind, self._first = random, kind, first
        self.clear()

    def clear(self) -> None:
        self._of: dict[str, Uniform] = {}
        self._given: dict[str, int] = {}  # new ones so far, by device
        self._count = 0

    @property
    def fresh(self) -> int:
        return sum(each.fresh for each in self._of.values())

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: Key) -> bool:
        return key[0] in self._of and key in self._of[key[0]]

    def version(self, key: Key) -> int | None:
        return self._of[key[0]].version(key) if key[0] in self._of else None

    def add(self, key: Key, version: int) -> None:
        if key[0] not in self._of:
            self._of[key[0]] = self._kind(self._random)
        self._count += key not in self
        self._of[key[0]].add(key, version)

    def remove(self, key: Key) -> None:
        if key in self:
            self._count -= 1
            self._of[key[0]].remove(key)

    def trained(self, key: Key, loss: float) -> None:
        if key in self:
            self._of[key[0]].trained(key, loss)

    def column(self, name: str) -> NDArray[Any]:
        return np.concatenate([Ledger().column(name), *(each.column(name) for each in self._of.values())])

    def pick(self) -> tuple[Key, float] | None:
        for key in self.due(1):
            self._of[key[0]].seen(key)
            self._given[key[0]] = self._given.get(key[0], 0) + 1
            return key, 1.0
        if not self._count:
            return None
        counts = np.array([len(each) for each in self._of.values()])
        held = np.sort(counts[counts > 0])
        ends = np.cumsum(np.minimum(counts, held[(len(held) - 1) // 2]))
        place = int(np.searchsorted(ends, self._random.random() * ends[-1], side="right"))
        return list(self._of.values())[place].pick()

    def due(self, count: int) -> list[Key]:
        """What `pick` names next; beyond the first, if nothing else happens."""
        new = {device: each for device, each in self._of.items() if each.fresh} if self._first else {}
        if not new:
            return []
        had = sorted(given for given in self._given.values() if given)
        most = _TIMES * had[(len(had) - 1) // 2] if had else 0
        turns = [
            (given + place, order, key)
            for order, (device, each) in enumerate(new.items())
            for given in (self._given.get(device, 0),)
            for place, key in enumerate(each.newest(count))
            if given + place <= most or not had
        ]
        return [key for *_, key in heapq.nsmallest(count, turns)]

    def state(self) -> dict[str, Any]:
        return {
            "given": dict(self._given),
            "random": self._random.bit_generator.state,
            "of": {device: each.state() for device, each in self._of.items()},
        }

    def resume(self, state: dict[str, Any]) -> None:
        """As Ledger.resume, with all chance: of the same batches `pick` then names the same keys."""
        before = self._random.bit_generator.state
        of: dict[str, Uniform] = {}
        try:
            for device, said in state["of"].items():
                of[str(device)] = self._kind(self._random)
                for key, version in self._keys(device):
                    of[device].add(key, version)
                of[device].resume(said)
            given = {str(device): int(count) for device, count in state["given"].items()}
            self._random.bit_generator.state = state["random"]
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            self._random.bit_generator.state = before
            raise CacheError(f"the state of the sampling is damaged: {error!r}") from error
        except CacheError:
            self._random.bit_generator.state = before
            raise
        self._of, self._given = {**of, **{d: each for d, each in self._of.items() if d not in of}}, given

    def _keys(self, device: str) -> list[tuple[Key, int]]:
        each = self._of.get(device)
        return [] if each is None else [(key, each.version(key) or 0) for key in each.keys()]  # noqa: SIM118 - a method of ours


def as_json(state: dict[str, Any]) -> dict[str, Any]:
    """A `state` whose rows are text. Of many this takes milliseconds: it is not for under the cache's lock."""
    return {**state, "of": {device: batch_records.as_json(each) for device, each in state["of"].items()}}


POLICIES: dict[str, Callable[[np.random.Generator], Sampler]] = {
    "mixed": partial(Shares, kind=Uniform, first=True),
    "uniform": partial(Shares, kind=Uniform),
    "importance": partial(Shares, kind=Importance),
    "fresh": partial(Shares, kind=Fresh),
}
