"""The exact mean of FedAvg (McMahan et al. 2017): the same updates give the same bits whatever order they arrive in, and
the memory is two float64 a weight however many devices there are.

How: weight x samples is exact in float64 (24 + 24 bits). It is cut into two limbs, a multiple of 2^-4 and a
multiple of 2^-42 below it. Integers of float64 add without rounding up to 2^53: the high limbs stay under
2^16 x 2^30 x 2^4 = 2^50, the low ones under 2^14 updates x 2^38 = 2^52. What is left over of weight x samples
is under 2^-43 an update: a mean is off by 1e-13 at most, and by less the more samples there are.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from emo.errors import UpdateRefused
from emo.wire.messages import Weights

MAX_WEIGHT, MAX_SAMPLES, MAX_UPDATES = 2.0**16, 2**30, 2**14
MAX_COUNTER = 2.0**53
_HIGH, _LOW = 2.0**4, 2.0**38


@dataclass
class Sum:
    """Updates added so far. `like`: the round's global model, which says names, shapes and dtypes."""

    like: Weights
    high: Mapping[str, np.ndarray]
    low: Mapping[str, np.ndarray]
    samples: int = 0
    updates: int = 0

    def add(self, weights: Weights, samples: int) -> None:
        """One device's weights, which `check` has let pass and which count `samples` times.

        Raises UpdateRefused, with nothing added, on more samples or updates than the sum holds."""
        must_hold(self.samples, self.updates, samples)
        for name, array in weights.items():
            if array.dtype.kind in "iu":  # batch norm's counters: the largest, and none goes back
                np.maximum(self.high[name], array, out=self.high[name])
                continue
            scaled = array.astype(np.float64) * (samples * _HIGH)
            whole = np.rint(scaled)
            np.add(self.high[name], whole, out=self.high[name])
            np.add(self.low[name], np.rint((scaled - whole) * _LOW), out=self.low[name])
        self.samples += samples
        self.updates += 1

    def result(self) -> dict[str, np.ndarray]:
        """The mean, in the dtypes of `like`. Raises UpdateRefused when empty."""
        if not self.updates:
            raise UpdateRefused("no update to average")
        mean = {}
        for name, array in self.like.items():
            value = self.high[name]
            if array.dtype.kind not in "iu":
                value = (value + self.low[name] / _LOW) / (_HIGH * self.samples)
            mean[name] = np.asarray(value).astype(array.dtype)  # numpy makes a scalar of arithmetic on 0 dims
        return mean


def init(like: Weights) -> Sum:
    """The empty sum for a round that starts from the weights `like`."""
    low = {name: np.zeros(array.shape) for name, array in like.items()}
    high = {
        name: array.astype(np.float64) if array.dtype.kind in "iu" else np.zeros(array.shape)
        for name, array in like.items()
    }
    return Sum(like, high, low)


def must_hold(samples: int, updates: int, more: int) -> None:
    """Raises UpdateRefused when a sum of `updates`, which count for `samples`, takes none that counts for `more`."""
    if more < 1 or samples + more > MAX_SAMPLES or updates >= MAX_UPDATES:
        raise UpdateRefused(f"{more} samples: a round takes 1 to {MAX_SAMPLES} in all, from {MAX_UPDATES} updates")


def fits(like: Weights, weights: Weights) -> None:
    """Raises UpdateRefused when `weights` have other names, shapes or dtypes than `like`."""
    if weights.keys() != like.keys():
        odd = sorted(weights.keys() ^ like.keys())
        raise UpdateRefused(f"its tensors do not match the model: {', '.join(odd[:3])}")
    for name, array in weights.items():
        if array.shape != like[name].shape or array.dtype != like[name].dtype:
            raise UpdateRefused(
                f"{name} is {array.dtype}{list(array.shape)}, expected {like[name].dtype}{list(like[name].shape)}"
            )


def check(like: Weights, weights: Weights) -> None:
    """Raises UpdateRefused when `weights` cannot be averaged with `like`."""
    fits(like, weights)
    bounded(weights)


def bounded(weights: Weights) -> None:
    """Raises UpdateRefused on a value that the sum does not hold exactly: NaN, infinity, a weight of 65,536 or more."""
    for name, array in weights.items():
        bound = MAX_COUNTER if array.dtype.kind in "iu" else MAX_WEIGHT
        # Finds NaN and infinity too: comparisons with NaN are false.
        wide = array.astype(np.float32) if array.dtype == np.float16 else array  # whose range ends below the bound
        if not ((wide > -bound) & (wide < bound)).all():
            raise UpdateRefused(f"{name} has NaN, infinity or a value of {bound:.0f} or more")
