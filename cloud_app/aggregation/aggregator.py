"""Makes one model of a round's updates, also where some devices are broken or hostile.

The same updates give the same bits, in whatever order they come.

    StreamingMean   mean, also with a fixed `clip_norm`: a running sum (exact_mean.py), the memory of one model
    StoredRule      everything else: every update is kept until the round is closed, a file each (update_store.py)

An update that goes further than `max_norm` times the model is refused. One that goes further than `clip_norm` is shortened
to it: a fixed norm (Sun et al. 2019, arXiv 1911.07963), or the median of the round's own (FLAME: Nguyen et al. 2022,
arXiv 2101.02281, section 4.2), which needs no figure and which fewer than half of the devices cannot move at will.
Devices only claim their `samples`: for the weighted mean they are cut where a device would count for more than `max_weight`
equal shares of what all that are asked have announced (truncation: Portnoy et al. 2020, arXiv 2004.04986). In the other
rules every device counts the same. Which tensors are averaged at all, and what each may become: emo/models/state.py.
"""

import statistics
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cloud_app.aggregation import byzantine, clipping, exact_mean, update_store
from cloud_app.aggregation.update_store import UpdateStore
from emo.config import Rounds
from emo.errors import UpdateRefused
from emo.models.state import PLAIN, Layout
from emo.wire.messages import Weights

_RULES: dict[str, byzantine.Rule] = {
    "mean": byzantine.mean,
    "median": byzantine.median,
    "trimmed-mean": byzantine.trimmed_mean,
    "multi-krum": byzantine.multi_krum,
}


@dataclass(frozen=True)
class Result:
    """`weights`: the new global model. Of the devices: whose update was shortened, and whose multi-Krum did not take."""

    weights: Weights
    clipped: tuple[str, ...]
    left_out: tuple[str, ...]


class Aggregator(ABC):
    """The updates of a round that starts from the weights `start`. `sum`: of them, where that is all that is kept."""

    sum: exact_mean.Sum | None = None

    def __init__(self, rounds: Rounds, start: Weights, layout: Layout) -> None:
        self._rounds, self._start, self._layout = rounds, start, layout
        self._like = layout.trained(start)
        self._bound = rounds.max_norm * max(1.0, clipping.norm(self._like))
        self._norms: dict[str, float] = {}  # by device, before clipping

    def add(self, device: str, weights: Weights, samples: int, passes: int) -> None:
        """The weights of `device`, from which none have come yet, and which counts for `samples`. `passes`: how many
        forward passes in training it can have made.

        Raises UpdateRefused, with nothing added, where no honest training gives such weights, and where they go too far."""
        exact_mean.fits(self._start, weights)
        self._layout.check(self._start, weights, passes)
        weights = self._layout.trained(weights)
        exact_mean.bounded(weights)
        norm, limit = clipping.norm(self._like, weights), self._rounds.clip_norm
        if norm > self._bound:
            raise UpdateRefused(
                f"it changes the model by {norm:.3g} (L2 norm); at most {self._bound:.3g} is taken, "
                f"{self._rounds.max_norm:g} times the model's own (rounds.max_norm). Is the learning rate too high?"
            )
        if isinstance(limit, float) and norm > limit:
            weights = clipping.clipped(self._like, weights, norm, limit)
            exact_mean.bounded(weights)
        self._take(device, weights, samples)
        self._norms[device] = norm

    @abstractmethod
    def _take(self, device: str, weights: Weights, samples: int) -> None:
        """Raises UpdateRefused, with nothing added."""

    @abstractmethod
    def result(self) -> Result:
        """May be asked once. Raises UpdateRefused when no update has come, or too few for the rule, or one cannot be read again."""

    def _over(self, limit: float) -> tuple[str, ...]:
        return tuple(sorted(device for device, norm in self._norms.items() if norm > limit))


class StreamingMean(Aggregator):
    sum: exact_mean.Sum

    def __init__(self, rounds: Rounds, start: Weights, layout: Layout) -> None:
        super().__init__(rounds, start, layout)
        self.sum = exact_mean.init(self._like)

    def _take(self, device: str, weights: Weights, samples: int) -> None:
        del device
        self.sum.add(weights, samples)

    def result(self) -> Result:
        limit = self._rounds.clip_norm
        clipped = self._over(limit) if isinstance(limit, float) else ()
        return Result(self._layout.whole(self.sum.result(), self._start), clipped, ())


class StoredRule(Aggregator):
    """`hostile`: how many devices may be."""

    def __init__(self, rounds: Rounds, start: Weights, layout: Layout, hostile: int, folder: Path | None) -> None:
        super().__init__(rounds, start, layout)
        self._hostile, self.store = hostile, UpdateStore(self._like, folder)

    def _take(self, device: str, weights: Weights, samples: int) -> None:
        counted = self.store.samples
        exact_mean.must_hold(sum(counted.values()), len(counted), samples)
        self.store.put(device, weights, samples)

    def result(self) -> Result:
        store, limit = self.store, self._rounds.clip_norm
        if limit == "median":
            limit = statistics.median(self._norms.values() or [0.0])
            for device in self._over(limit):
                shorter = clipping.clipped(self._like, store.weights(device), self._norms[device], limit)
                store.put(device, shorter, store.samples[device])
        weights, left_out = _RULES[self._rounds.aggregate](store, self._hostile)
        store.clear()
        weights = self._layout.whole(weights, self._start)
        return Result(weights, () if limit is None else self._over(limit), left_out)


def keeps_all(rounds: Rounds) -> bool:
    """Whether every update is kept until the round is closed."""
    return rounds.aggregate != "mean" or rounds.clip_norm == "median"


def check(rounds: Rounds, like: Weights, folder: Path | None) -> None:
    """Raises ConfigError when the updates of a round would not fit on the disk of `folder`."""
    if keeps_all(rounds):
        update_store.must_fit(like, rounds.per_round or rounds.min_devices, folder)


def cap(rounds: Rounds, announced: Sequence[int]) -> int | None:
    """The most samples that one of the devices that are asked counts for, by what they have announced: with all cut to it,
    none has more than `max_weight` times an equal share of the sum. One that announces nothing adds nothing to that sum.
    None: no limit."""
    if rounds.max_weight is None:
        return None
    left = sorted(announced, reverse=True)
    for cut, largest in enumerate(left):  # so many are over it
        most = rounds.max_weight * sum(left[cut:]) / (len(left) - rounds.max_weight * cut)
        if most >= largest:
            return max(1, int(most))
    return 1


def init(
    rounds: Rounds, start: Weights, devices: int, folder: Path | None = None, layout: Layout = PLAIN
) -> Aggregator:
    """For a round in which `devices` are asked, from the weights `start`. `folder`: for updates that are kept; it is
    emptied (None: a temporary one). Raises ConfigError when it cannot be used."""
    if keeps_all(rounds):
        return StoredRule(rounds, start, layout, rounds.hostile(devices), folder)
    return StreamingMean(rounds, start, layout)
