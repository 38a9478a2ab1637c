"""Bounds what one device may take of an edge: batches, work, training budget.

Relative to what the other devices have had, so that a fast fleet and a slow one need no figures of their own.
"""

import statistics
from collections import Counter

from pydantic import BaseModel

from emo.config import Id
from emo.errors import WireError
from emo.journal import Journal
from emo.wire.messages import ActivationBatch, Count, TapReport

_TIMES = 4  # what the median of the others has had
_ANY = 2**63
_MOST = 2**53 - 1  # of a count in a message


class QuotaState(BaseModel, extra="forbid"):
    """What each device has had in this run."""

    served: Counter[Id] = Counter()  # batches of the usual size that were worked on
    sizes: dict[Id, Count] = {}  # samples of its largest
    reports: dict[Id, tuple[Count, Count]] = {}  # batches offered to the policy, let through


class DeviceQuota:
    """`free`: batches that a device may have and, of a run, those that it may send whatever others do
    (`cache.device_batches`). More only up to four times the median of the other devices that send; alone, without a
    limit. A batch with more samples than is usual counts as several. One thread at a time, but for `attempted` and
    `sent`."""

    def __init__(self, free: int, journal: Journal) -> None:
        self._free, self._journal = free, journal
        self.state = QuotaState()

    def admits(self, batch: ActivationBatch) -> bool:
        """Whether there is work left for its device; else it is counted (`activations.over_share`). Raises WireError on a batch
        number that is not below `free`."""
        if batch.batch >= self._free:
            raise WireError(
                f"batch {batch.batch} of {batch.device}: this edge takes {self._free} different ones of a device, numbered "
                "from 0 (cache.device_batches)"
            )
        had = self.state.served[batch.device]
        if had < self._free or had < self._most(batch.device):  # seldom comes to the median of all
            return True
        self._journal.problem(
            "activations.over_share",
            f"{batch.device} has sent {had} batches, {_TIMES} times what others send; no more of it "
            "until they have (cache.device_batches)",
        )
        return False

    def serve(self, batch: ActivationBatch) -> None:
        """It is worked on: what it costs is its device's."""
        samples = len(batch.labels)
        self.state.sizes[batch.device] = max(samples, self.state.sizes.get(batch.device, 0))
        usual = statistics.median_low(self.state.sizes.values())
        self.state.served[batch.device] += -(-samples // usual)

    def report(self, report: TapReport, most: int) -> None:
        """`most`: batches that its device can have offered. What has been reported before, or less, changes nothing."""
        if report.attempted > most:
            self._journal.problem(
                "reports.over_share",
                f"{report.device} reports {report.attempted} batches; {most} are counted: no more can be, of those that "
                "it has sent and in so many rounds",
            )
        known = self.state.reports.get(report.device, (0, 0))
        attempted = min(report.attempted, most)
        self.state.reports[report.device] = max(known, (attempted, min(report.sent, attempted)))

    @property
    def attempted(self) -> int:
        return min(_MOST, sum(offered for offered, _ in list(self.state.reports.values())))

    @property
    def sent(self) -> int:
        return min(_MOST, sum(sent for _, sent in list(self.state.reports.values())))

    def _most(self, device: str) -> int:
        others = [count for name, count in self.state.served.items() if name != device and count]
        return max(self._free, _TIMES * statistics.median_low(others)) if others else _ANY
