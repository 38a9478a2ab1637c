"""The device's copy of the edge's intervals: Algorithm 1's decision with no message and no waiting.

Knows batch numbers, versions and intervals. Knows no activation, no score and no channel.

After a batch is sent its interval is unknown until the edge answers for that very version, and
unknown means "send at the next attempt". So a lost, late, doubled or reordered answer can only make
the device send earlier than Algorithm 1 would: between two sends of a batch it skips either as often
as Algorithm 1 prescribes for the first of them, or not at all.
"""

import math
import threading
from collections.abc import Iterable
from dataclasses import astuple, dataclass

Row = tuple[int, int, float | None, int]  # batch, version, interval, skipped: as in _Sent


@dataclass(slots=True)
class _Sent:
    version: int
    interval: float | None = None  # None: the edge has not answered for this version
    skipped: int = 0


class IntervalTable:
    """For one device; grows by one small entry a batch of its own.

    `max_age`: a batch goes after this many skipped attempts, whatever the edge said. Infinite: the edge's
    answers hold its own limit already. The training thread calls `allow`, the receiving one `update`; one
    lock guards the table, held for no I/O.
    """

    def __init__(self, max_age: float = math.inf) -> None:
        self._max_age = max_age
        self._lock = threading.Lock()
        self._sent: dict[int, _Sent] = {}

    def allow(self, batch: int, version: int, fresh: bool = False) -> bool:
        """Decide one transfer request. True: send it as `version`, which must grow from send to send.
        `fresh`: always true.

        True also notes it as sent, with its interval unknown: if it is then lost, or dropped from a
        full queue, the next attempt sends.
        """
        with self._lock:
            entry = self._sent.get(batch)
            if (
                fresh
                or entry is None
                or entry.interval is None
                or entry.skipped >= min(entry.interval, self._max_age)
            ):
                self._sent[batch] = _Sent(version)
                return True
            entry.skipped += 1
            return False

    def answered(self, batch: int) -> bool:
        """Whether the edge has answered for the version sent last: then that is what it holds."""
        with self._lock:
            entry = self._sent.get(batch)
            return entry is not None and entry.interval is not None

    def update(self, batch: int, version: int, interval: float) -> bool:
        """The edge's answer for (batch, version). False, and nothing changed, unless it is the first
        one for the version sent last, and a finite interval of 0 or more attempts.
        """
        if not math.isfinite(interval) or interval < 0:
            return False
        with self._lock:
            entry = self._sent.get(batch)
            if entry is None or entry.version != version or entry.interval is not None:
                return False
            entry.interval = float(interval)
            return True

    def reset(self) -> None:
        """A new run: every batch is sent at its next attempt."""
        with self._lock:
            self._sent.clear()

    def rows(self) -> list[Row]:
        """All that it knows, for `resume`."""
        with self._lock:
            return [(batch, *astuple(entry)) for batch, entry in self._sent.items()]

    def resume(self, rows: Iterable[Row]) -> None:
        """What `rows` gave, and nothing else."""
        with self._lock:
            self._sent = {
                batch: _Sent(version, interval, skipped) for batch, version, interval, skipped in rows
            }
