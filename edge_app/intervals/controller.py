"""Algorithm 1 of the paper (section IV-C): when a device sends an activation batch again.

Holds the paper's log: ID cache, interval, counter. A counter counts attempts, not seconds.

What the paper leaves open. It asks `c == i` of a real i: read as the first integer c >= i. At s = 1 its i
is infinite: capped. SVCCA and CKA score 1 when the channels are rotated, however far: so the relative
change r = ||new - cached|| / ||cached|| bounds the interval too, i <= (max_change / r)^2. For versions of
equal norm and max_change = 2 that says s <= (1 + cosine similarity) / 2. In training 1 - s grows as r^2
too, and faster, so there the bound is silent; under a rotation it is all that speaks.

One thread at a time: the one that receives.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, Field

from emo.config import POLICY, Id
from emo.errors import ConfigError
from emo.wire.messages import Count

# Policies that look at no score. `fixed(n)` is n: Algorithm 1 with i = n, so n attempts are skipped after
# each send. Of `once`, max_age makes "never again" unless it is longer than the run.
_CONSTANT = {"always": 0.0, "once": math.inf}


def score_interval(score: float, max_interval: float) -> float:
    """i = 1 / (1 - s), s clamped to [0, 1), at most `max_interval`; not finite: 0, send at the next attempt."""
    if not math.isfinite(score):
        return 0.0
    return max_interval if score >= 1.0 else min(1.0 / (1.0 - max(score, 0.0)), max_interval)


def change_bound(change: float, max_change: float) -> float:
    """(max_change / change)^2: the longest interval after this relative change; NaN: 0, no change: infinite."""
    if math.isnan(change):
        return 0.0
    ratio = max_change / change if change > 0.0 else math.inf
    return ratio * ratio  # not ** 2, which raises where this is infinite


@dataclass(slots=True)
class Row:
    """One line of the log: the newest version of a batch that came.

    `score` of its comparison with the version before it, 0 for a first one, NaN where nothing can be said
    or the policy asks for no score. `interval` and `counter` in attempts. A device counts its own attempts
    (device_app/intervals.py), of which the edge hears by the round and not by the batch: here the counter stays 0.
    """

    device: Id
    batch: Count
    version: Count
    score: float
    interval: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    counter: Count = 0


class ControllerState(BaseModel, extra="forbid"):
    """`rows`: device -> batch -> the log's line, in the order in which they were first seen."""

    rows: dict[Id, dict[Count, Row]] = {}
    nan_scores: Count = 0  # scores that said nothing
    guarded: Count = 0  # intervals that the relative change made shorter

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "ControllerState":
        """A restart in the middle of a run: the log is `rows`, every other batch unseen."""
        state = cls()
        for row in rows:
            state.put(row)
        return state

    def put(self, row: Row) -> None:
        self.rows.setdefault(row.device, {})[row.batch] = row


class Controller:
    """`policy`: always, fixed(n), once, svcca or cka. `max_interval` and `max_age` are attempts of the same
    batch, `max_change` a relative L2 change; `max_age` binds every policy, the other two svcca and cka only.

    Raises ConfigError for an unknown policy or a bound that cannot be.
    """

    def __init__(
        self,
        policy: str = "svcca",
        max_interval: float = 4.0,
        max_age: int = 128,
        max_change: float = 2.0,
    ) -> None:
        match = POLICY.fullmatch(policy)
        if match is None:
            raise ConfigError(f"controller.policy: {policy!r} is unknown; known: always, fixed(n), once, svcca, cka")
        if not (1 <= max_interval < math.inf and 1 <= max_age < math.inf):
            raise ConfigError(
                f"controller: max_interval ({max_interval}) and max_age ({max_age}) must be finite, 1 or more"
            )
        if not max_change > 0:
            raise ConfigError(f"controller.max_change ({max_change}) must be above 0")
        self._constant = float(match["n"]) if match["n"] else _CONSTANT.get(policy)
        self._max_interval, self._max_age, self._max_change = max_interval, max_age, max_change
        longest = max_interval if self._constant is None else self._constant
        self.attempts = math.ceil(min(longest, max_age)) + 1  # of a batch, for one that is sent, at most
        self.state = ControllerState()

    def received(self, device: str, batch: int, score: float, change: float = 0.0, version: int = 0) -> float:
        """`version` of the batch came, with `score` and relative L2 `change` against the version before it
        (0.0 and 0.0 for a first one); c = 0.

        Returns the new interval in attempts, 0 to `max_age`: the device is told just this, and needs no
        limit of its own. A score that is not finite is counted in `state.nan_scores` and makes it 0.
        """
        interval = self._interval(score, change)
        self.state.put(Row(device, batch, version, score, interval))
        return interval

    def row(self, device: str, batch: int) -> Row | None:
        """The batch's line; None for one that is unseen."""
        return self.state.rows.get(device, {}).get(batch)

    def batches(self, device: str) -> int:
        """How many different ones of the device have come."""
        return len(self.state.rows.get(device, ()))

    def _interval(self, score: float, change: float) -> float:
        if self._constant is not None:
            return min(self._constant, self._max_age)
        self.state.nan_scores += not math.isfinite(score)
        interval = score_interval(score, self._max_interval)
        bound = change_bound(change, self._max_change)
        self.state.guarded += bound < interval
        return min(interval, bound, self._max_age)
