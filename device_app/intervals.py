"""The device's copy of the edge's intervals: Algorithm 1's decision with no message and no waiting.

After a batch is sent its interval is unknown until the edge answers for that very version, and
unknown means "send at the next attempt". So a lost, late, doubled or reordered answer can only make
the device send earlier than Algorithm 1 would: between two sends of a batch it skips either as often
as Algorithm 1 prescribes for the first of them, or not at all.
"""

import math
import threading
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from emo.wire.messages import Count, Finite, Round

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(slots=True)
class Sent:
    """The version of a batch that was sent last. `interval`: None while the edge has not answered for it."""

    version: Count
    interval: Annotated[Finite, Field(ge=0)] | None = None
    skipped: Count = 0


class IntervalTable:
    """For one device; grows by one small entry a batch of its own. `sent`: changed in place.

    The training thread calls `allow`, the receiving one `update`; one lock guards the table, held for no I/O.
    """

    def __init__(self, sent: dict[Round, Sent]) -> None:
        self._lock = threading.Lock()
        self._sent = sent

    def allow(self, batch: int, version: int, fresh: bool = False) -> bool:
        """Decide one transfer request. True: send it as `version`, which must grow from send to send.
        `fresh`: always true.

        True also notes it as sent, with its interval unknown: if it is then lost, or dropped from a
        full queue, the next attempt sends.
        """
        with self._lock:
            entry = self._sent.get(batch)
            if fresh or entry is None or entry.interval is None or entry.skipped >= entry.interval:
                self._sent[batch] = Sent(version)
                return True
            entry.skipped += 1
            return False

    def answered(self, batch: int) -> bool:
        """Whether the edge has answered for the version sent last: then that is what it holds."""
        with self._lock:
            entry = self._sent.get(batch)
            return entry is not None and entry.interval is not None

    def signs(self, most: int) -> str:
        """What the table holds, as Report.intervals has it: a sign a batch, or for as many in a row that there are `most`
        at most."""
        with self._lock:
            known = {batch: entry.interval for batch, entry in self._sent.items()}
        if not known:
            return ""
        wide = -(-(max(known) + 1) // most)
        found: dict[int, list[float]] = {}
        for batch, interval in known.items():
            if interval is not None:
                found.setdefault(batch // wide, []).append(min(35.0, interval))  # an edge may say 1e308
        means = [found.get(place) for place in range(max(known) // wide + 1)]
        return "".join("." if not each else _DIGITS[round(sum(each) / len(each))] for each in means)

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
