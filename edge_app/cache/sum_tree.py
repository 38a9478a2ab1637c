"""A tree of sums over weights at places 0, 1, ...: O(log n) to change one and to find where a draw falls.

Each change computes the sums above it anew, so rounding errors do not add up, and equal weights give equal sums whatever
came before.
"""

from array import array

import numpy as np
from numpy.typing import NDArray


class SumTree:
    """Weights are 0 or more and finite; a place that was never set has 0."""

    def __init__(self) -> None:
        self._size = 1  # a power of two; the weights are the last `_size` sums
        self._sums = array("d", (0.0, 0.0))

    @property
    def total(self) -> float:
        return self._sums[1]

    def __getitem__(self, place: int) -> float:
        return self._sums[self._size + place] if place < self._size else 0.0

    def __setitem__(self, place: int, weight: float) -> None:
        if place >= self._size:
            self.fill(np.append(np.array(self._sums[self._size :]), np.zeros(place + 1 - self._size)))
        sums, at = self._sums, self._size + place
        sums[at] = weight
        while at > 1:
            at >>= 1
            sums[at] = sums[2 * at] + sums[2 * at + 1]

    def fill(self, weights: NDArray[np.float64]) -> None:
        """Exactly these, from place 0 on."""
        self._size = 1 << max(len(weights) - 1, 0).bit_length()
        sums = np.zeros(2 * self._size)
        sums[self._size : self._size + len(weights)] = weights
        at = self._size
        while at > 1:
            sums[at // 2 : at] = sums[at : 2 * at : 2] + sums[at + 1 : 2 * at : 2]
            at //= 2
        self._sums = array("d", sums.tobytes())

    def find(self, draw: float) -> int:
        """The place where the running sum passes `draw`, in [0, total); one of a weight above 0 while the total is."""
        sums, at = self._sums, 1
        while at < self._size:
            at *= 2
            if draw >= sums[at] and sums[at + 1] > 0:  # the second: rounding may leave a draw past the end
                draw -= sums[at]
                at += 1
            elif sums[at] <= 0:
                at += 1
        return at - self._size
