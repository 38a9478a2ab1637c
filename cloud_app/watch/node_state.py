"""One node as an observer knows it: its last words, its figures, and the light that it shows."""

import sys
from collections import deque
from typing import Any, Literal

from emo.logs import printable
from emo.wire.messages import Report, Role, Status

Light = Literal["training", "alive", "late", "out", "refused", "gone"]
FIGURES = 256  # of a node
GONE_S = 100.0  # an alive node repeats its status every 30 s
_EVENTS = 50  # of a node, that are kept
_SEEN = 256  # events of a node by which a doubled one is told
_DOUBT_S = 10.0  # what the cloud says of a node holds at least so long
_DISORDER_S = 60.0  # a report up to so much older than the last is that one or an earlier one again, not another clock
_LARGEST = 1e18  # of a figure; beyond it sums of them would be infinite


class Node:
    """`figures`: counters and gauges by name as the node's last reports said; `told`: when. `events`: numbers of the log's
    entries about it. `asked`, `counted`: number of the last round for which the cloud asked it, and counted its update.
    `left`: why it was left out of the last round."""

    def __init__(self, name: str, tier: Role, edge: str = "") -> None:
        self.id, self.tier, self.edge = name, tier, edge
        self.online: bool | None = None  # None: it has not announced itself
        self.last_seen: float | None = None
        self.doing, self.intervals, self.run = "", "", ""
        self.trouble = self.unable = ""  # by its own words: now; at all
        self.samples = 0
        self.figures: dict[str, float] = {}
        self.told: dict[str, float] = {}
        self.sums: tuple[float, ...] = ()  # of some of them, by the view; empty before the first report
        self.asked = self.counted = self.trained = 0
        self.loss: float | None = None
        self.refused = self.left = ""
        self.trains = False  # by its last report, and nothing came since that says that it is done
        self.distrusted = ""  # why an edge trains without it
        self._out, self._out_at = "", 0.0  # by the cloud's words
        self._base: dict[str, float] = {}  # of counters that began again: what they had come to
        self._before: dict[str, float] = {}  # totals when the run began
        self.reported: float | None = None  # when, by its own clock
        self._values: tuple[object, ...] = ()
        self._shown: dict[str, Any] = {}  # made of these
        self.events: deque[int] = deque(maxlen=_EVENTS)
        self._seen: dict[tuple[int, float], None] = {}

    # -- what it says

    def status(self, status: Status, now: float) -> bool:
        """Whether it has come or gone with that."""
        changed = self.online is not status.online and (status.online or self.online is not None)
        self.online = status.online
        if status.online:
            self.last_seen = now
            self.samples = status.samples
            self.unable = printable(status.trouble, 500)
        return changed

    def report(self, report: Report, now: float) -> None:
        self.last_seen = now
        if self.reported is not None and 0 < self.reported - report.time < _DISORDER_S:
            return
        self.reported = report.time
        self.doing, self.run = printable(report.doing, 64), report.run
        self.trouble = printable(report.trouble, 200)
        self.intervals, self.trains = report.intervals, report.doing.startswith("trains")
        if report.edge:
            self.edge = report.edge
        if not self.trouble and now - self._out_at > _DOUBT_S:
            self._out = ""
        for name, value in report.figures.items():
            self._figure(sys.intern(printable(name, 64)), min(max(value, -_LARGEST), _LARGEST), now)

    def _figure(self, name: str, value: float, now: float) -> None:
        before = self.figures.get(name)
        if before is None and len(self.figures) >= FIGURES:
            oldest = min(self.told, key=self.told.__getitem__)
            del self.figures[oldest], self.told[oldest]
            self._base.pop(oldest, None)
            self._before.pop(oldest, None)
        if before is not None and value < before and _counts(name):
            self._base[name] = self._base.get(name, 0.0) + before
        self.figures[name], self.told[name] = value, now

    def first(self, number: int, time: float) -> bool:
        """Whether its event `number` of `time` has not come before."""
        key = number, time
        if key in self._seen:
            return False
        self._seen[key] = None
        if len(self._seen) > _SEEN:
            del self._seen[next(iter(self._seen))]
        return True

    # -- what the cloud says of it

    def left_out(self, why: str, now: float) -> None:
        self._out, self._out_at = printable(why, 500), now

    def takes_part(self) -> None:
        self._out = self.refused = self.left = ""
        self.trains = False

    def begin(self) -> None:
        """Another run."""
        self._before = {name: self.sum(name) for name in self.figures if name.startswith(("sent_", "received_"))}
        self._base = {name: value for name, value in self._base.items() if not name.startswith("tap.")}
        self.asked = self.counted = self.trained = 0
        self.refused = self.left = self.distrusted = ""
        self.loss = None

    # -- what follows

    def sum(self, name: str) -> float:
        """A counter since it was seen first, over restarts of the node."""
        return self._base.get(name, 0.0) + self.figures.get(name, 0.0)

    def of_run(self, name: str) -> float:
        """A counter since the run began; 0 at least."""
        return max(0.0, self.sum(name) - self._before.get(name, 0.0))

    def alive(self, now: float, sure: bool) -> bool:
        """`sure`: it could have been heard for long enough until `now` to say so where it says nothing."""
        if not self.online or self.last_seen is None:
            return False
        return not sure or now - self.last_seen < GONE_S

    def light(self, alive: bool, round: int, late: bool) -> tuple[Light, str]:
        """And why. `round`: the open one, or 0; `late`: whether those who have not answered in it are late."""
        if not alive:
            why = "has not announced itself" if self.online is None else "says nothing" if self.online else "is offline"
            return "gone", why
        if self.refused:
            return "refused", self.refused
        if why := self.unable or self.trouble or self._out:
            return "out", why
        awaited = round > 0 and self.asked == round and self.counted != round
        if awaited and late:
            return "late", f"round {round} waits for it"
        if awaited and self.trained != round:
            return "training", self.distrusted
        if self.trains:
            return "training", self.distrusted
        if self.left:
            return "late", self.left
        return "alive", self.distrusted

    def shown(self, light: Light, why: str) -> dict[str, Any]:
        """The same object as before where nothing has changed: not to be written to."""
        device = self.tier == "device"
        number = self.figures.get("train.round" if device else "fl.round")
        loss = self.loss if device else self.figures.get("overlay.loss")
        values = (
            light,
            why,
            self.last_seen,
            self.edge,
            self.doing,
            self.trained,
            number,
            loss,
            self.samples,
            self.intervals,
        )
        if values != self._values:
            self._values = values
            self._shown = {
                "id": self.id,
                "tier": self.tier,
                "alive": light != "gone",
                "last_seen": None if self.last_seen is None else round(self.last_seen, 1),
                "light": light,
                "why": why,
                "edge": self.edge if device else "",
                "doing": self.doing,
                "round": max(self.trained, int(number or 0)) or None,
                "loss": loss,
                "samples": self.samples,
                "intervals": self.intervals,
            }
        return self._shown


def _counts(name: str) -> bool:
    """Whether the figure is a counter that only restarts set back, of those that are summed here."""
    return name.startswith(("sent_bytes.", "received_bytes.", "tap."))
