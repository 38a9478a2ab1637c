"""What a device offers to its edge: decided by the intervals, encoded against what the edge is known to hold.

Knows one run's batches, versions and answers. Knows no network, no training loop and no channel.
"""

import numpy as np
from numpy.typing import NDArray

from device_app.intervals import IntervalTable
from emo.codec import DELTA, Codec, Packed
from emo.messages import ActivationBatch, Interval, TapReport


class Offers:
    """`codec`: of the activations. One thread offers, another may bring the answers."""

    def __init__(self, device: str, edge: str, codec: Codec) -> None:
        self._device, self._edge, self._codec = device, edge, codec
        self._intervals = IntervalTable()
        self._last: dict[int, Packed] = {}  # of each batch what was sent last, where the codec makes deltas
        self.begin("")

    def begin(self, run: str) -> None:
        """Another run: every batch is unknown to the edge again."""
        self._run, self._attempted, self._sent = run, 0, 0
        self._intervals.reset()
        self._last.clear()

    def offer(
        self,
        batch: int,
        version: int,
        activations: NDArray[np.float32],
        labels: NDArray[np.int32],
        fresh: bool = False,
    ) -> ActivationBatch | None:
        """`activations` (N, C, ...) and `labels` (N,) of one batch as a message, or None: not this time (`fresh`: never).

        The arrays are kept, not copied. A delta is made only where the edge has answered for what was sent last.
        """
        self._attempted += 1
        base = self._last.get(batch) if self._intervals.answered(batch) else None
        if not self._intervals.allow(batch, version, fresh):
            return None
        self._sent += 1
        packed = Packed(activations, self._codec, base)
        if self._codec.endswith(DELTA):
            self._last[batch] = packed
        return ActivationBatch(self._run, self._edge, self._device, batch, version, packed, labels)

    def answer(self, interval: Interval) -> None:
        if interval.run == self._run:
            self._intervals.update(interval.batch, interval.version, interval.interval)

    def report(self, round: int) -> TapReport:
        """How many batches the run has offered so far, and how many went."""
        return TapReport(self._run, self._edge, self._device, round, self._attempted, self._sent)
