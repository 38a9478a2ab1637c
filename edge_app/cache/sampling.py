"""Which batch the overlay trains on next.

Knows the ledger of batches and the laws below. Knows no tensor and no disk. Not thread-safe: the cache around it
holds its lock. With N batches in the cache the next one is

    mixed        the newest that was never trained on; when there is none, each with 1/N  (paper, section IV-B)
    uniform      each with 1/N
    importance   each with FLOOR/N + (1 - FLOOR) * its loss / sum of losses: harder ones more often
    fresh        each with FLOOR/N + (1 - FLOOR) * h / sum of h, h = 2 ** (-age in versions / HALF_LIFE)

The loss is the one that the overlay had, averaged over its last times; one that is not known counts as the highest
known. After Katharopoulos & Fleuret 2018 (arXiv 1803.00942), who sample by a bound of the gradient's norm and
have the loss as its cheaper stand-in; the weight 1 / (N p) keeps the expected gradient that of uniform sampling.
FLOOR bounds it by 1 / FLOOR, and starves nothing. All chance comes from one generator: same calls, same keys.
"""

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_app.cache.ledger import Key, Ledger
from edge_app.cache.tree import SumTree
from emo.errors import CacheError

FLOOR = 0.2
HALF_LIFE = 8
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


class Mixed(Uniform):
    """A batch is given out as new once, whether it is then trained on or not."""

    def pick(self) -> tuple[Key, float] | None:
        for key in self.newest(1):
            self.seen(key)
            return key, 1.0
        return super().pick()

    def due(self, count: int) -> list[Key]:
        return self.newest(count)


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
        self._losses[place] = 0.0 if unknown else loss
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


POLICIES = {"mixed": Mixed, "uniform": Uniform, "importance": Importance, "fresh": Fresh}
