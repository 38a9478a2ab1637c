"""How far the run is, by what the cloud says of it: phase, the open round, the rounds that are over, what is left."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cloud_app.result import number
from cloud_app.watch.series import MOST, thinned
from emo.config import ID
from emo.wire.messages import RunHistory, RunState

Phase = Literal["waiting", "training", "finishing", "exporting", "done"]
ROUNDS = 2000  # that are kept
ASKED = 20_000  # devices of a round
_PACE = 8  # rounds by whose pace the time that is left is told
_LATE, _LATE_S = 1.5, 2.0  # once half have answered: so many times as long as they took, and so many seconds more
COLUMNS = ("round", "accuracy", "loss", "seconds", "updates", "sampled", "left_out", "sfl_bytes")


@dataclass
class OpenRound:
    """`asked`, `counted`: ids, in the order of the answers. `since`: when it was opened, by our clock."""

    number: int
    since: float
    asked: dict[str, None]
    counted: dict[str, None] = field(default_factory=dict)
    half: float | None = None  # seconds in which half of them had answered
    last: tuple[str, float] | None = None  # who answered last, and seconds that it took
    asked_count: int = 0  # where not all of them were named
    answered_count: int = 0

    def count(self, device: str, now: float) -> None:
        if device in self.counted or len(self.counted) >= ASKED:
            return
        self.counted[device] = None
        took = max(0.0, now - self.since)
        self.last = device, took
        if self.half is None and 2 * len(self.counted) >= len(self.asked):
            self.half = took

    def late(self, now: float) -> bool:
        """Whether those who have not answered are late."""
        return self.half is not None and now - self.since > _LATE * self.half + _LATE_S

    def missing(self) -> list[str]:
        return [device for device in self.asked if device not in self.counted]

    def shown(self) -> dict[str, Any]:
        missing = self.missing()
        asked = max(len(self.asked), self.asked_count)
        answered = min(max(len(self.counted), self.answered_count), asked)
        return {
            "asked": asked,
            "answered": answered,
            "since": round(self.since, 1),
            "missing": missing[:20] if answered < asked else [],
            "missing_count": asked - answered,
        }


class RunProgress:
    """`rows`: round -> a line of COLUMNS. `waited`: round -> who answered last, and seconds. `closed_at`: round -> Unix time,
    where that is known; `sums`: what had been sent by then. `settings`: section.key -> value, as the cloud told them. `version` grows with every change of the
    rows."""

    def __init__(self, run: str = "") -> None:
        self.run = run
        self.phase: Phase | None = "waiting" if run else None
        self.round = self.rounds = 0
        self.open: OpenRound | None = None
        self.result: dict[str, float] = {}
        self.rows: dict[int, tuple[float | None, ...]] = {}
        self.waited: dict[int, tuple[str, float]] = {}
        self.closed_at: dict[int, float] = {}
        self.sums: dict[int, dict[str, float | None]] = {}
        self.settings: dict[str, Any] = {}
        self.version = 0
        self._closed: deque[tuple[int, float]] = deque(maxlen=_PACE)  # round, and when it was closed

    def state(self, told: RunState) -> None:
        self.round, self.rounds = told.round, told.rounds
        if told.phase == "done" and self.phase == "exporting" and not self.result:
            return
        self.phase = told.phase
        if told.phase != "training":
            self._over()

    def opened(self, number: int, devices: list[str], now: float) -> None:
        self._over()
        self.phase, self.round = "training", number
        self.open = OpenRound(number, now, dict.fromkeys(devices[:ASKED]))

    def _over(self) -> None:
        """No round is open. That it has closed is told only after it has been measured, when the next one is open."""
        if self.open is not None and self.open.last is not None:
            self.waited[self.open.number] = self.open.last
            while len(self.waited) > MOST:
                del self.waited[next(iter(self.waited))]
        self.open = None

    def closed(self, fields: Mapping[str, Any], now: float) -> None:
        """The event of a round that is over."""
        this = whole(fields.get("round"))
        if this is None:
            return
        self.rounds = max(self.rounds, whole(fields.get("of")) or 0)
        self.round = max(self.round, this)
        if self.open is not None and self.open.number == this:
            self._over()
        self._closed.append((this, now))
        self.closed_at[this] = now
        left = fields.get("left_out")
        row = [number(fields.get(name)) for name in COLUMNS[:-1]]
        row[0], row[6] = this, float(len(left)) if isinstance(left, dict) else 0.0
        known = self.rows.get(this)
        if known is None or known[1:6] != tuple(row[1:6]):
            self._row(this, (*row, None if known is None else known[-1]))
        for kept in (self.closed_at, self.sums):
            for gone in kept.keys() - self.rows.keys():
                del kept[gone]

    def history(self, told: RunHistory) -> None:
        self.rounds = told.rounds
        for row in told.rows:
            if self.rows.get(row[0]) != row:
                self._row(row[0], row)
        if told.result and told.result != self.result:
            self.result, self.phase, self.open = dict(told.result), "done", None
            self.version += 1
        if self.phase is None:
            self.phase = "training"

    def _row(self, this: int, row: tuple[float | None, ...]) -> None:
        self.rows[this] = row
        self.version += 1
        if len(self.rows) > ROUNDS:
            kept = sorted(self.rows)
            half = len(kept) // 2
            self.rows = {number: self.rows[number] for number in [*kept[:half:2], *kept[half:]]}

    @property
    def accuracy(self) -> float | None:
        """FL's, measured last; after the export that of the result."""
        if "fl" in self.result:
            return self.result["fl"]
        measured = [this for this, row in self.rows.items() if row[1] is not None]
        return self.rows[max(measured)][1] if measured else None

    @property
    def sfl_bytes(self) -> float | None:
        told = [row[-1] for row in self.rows.values() if row[-1] is not None]
        return max(told, default=None)

    def seconds_left(self, now: float) -> float | None:
        """Of the rounds, by the pace of the last ones; None where that is not known."""
        if self.phase != "training" or not self.rounds or not self.rows:
            return None
        done = max(self.rows)
        left = self.rounds - done
        if left <= 0:
            return None
        pace, elapsed = self._pace(), 0.0
        if pace is None:
            return None
        if self.open is not None:
            elapsed = now - self.open.since
        elif self._closed:
            elapsed = now - self._closed[-1][1]
        return round(left * pace - min(max(0.0, elapsed), pace), 1)

    def _pace(self) -> float | None:
        """Seconds of a round."""
        if len(self._closed) > 1:
            (first, began), (last, ended) = self._closed[0], self._closed[-1]
            if last > first and ended > began:
                return (ended - began) / (last - first)
        seconds = [row[3] for _, row in sorted(self.rows.items())[-_PACE:] if row[3] is not None]
        pace = sum(seconds) / len(seconds) if seconds else None
        return pace if pace is not None and math.isfinite(pace) and pace >= 0 else None

    def shown(self) -> dict[str, Any]:
        """The rounds as columns."""
        rows = [self.rows[number] for number in sorted(self.rows)]
        rows = [rows[place] for place in thinned(len(rows))]
        return {name: [row[place] for row in rows] for place, name in enumerate(COLUMNS)}


def whole(value: Any) -> int | None:
    """A number of rounds, or None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


def valid_id(value: Any) -> str:
    """An id; empty where it is none."""
    return value if isinstance(value, str) and ID.fullmatch(value) else ""
