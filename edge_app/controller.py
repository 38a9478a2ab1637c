"""Algorithm 1 of the paper (section IV-C): when a device sends an activation batch again.

Knows device ids, batch numbers and scores, and holds the paper's log: ID cache, interval, counter.
Knows no activation, no SVCCA, no message and no clock: a counter counts attempts, not seconds.

The paper asks `c == i` of a real i; read here as the first integer c >= i. It leaves s = 1 open:
the interval is capped, and a batch goes in any case once `max_age` attempts were skipped, for SVCCA
is blind to a rotation of channels. One thread at a time: the one that receives.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from emo.errors import ConfigError

NEVER = 2.0**31  # above every max_age, and finite, so that it can go into a message


def svcca_interval(score: float, max_interval: float) -> float:
    """i = 1 / (1 - s), s clamped to [0, 1), at most `max_interval`; NaN: 0, send at the next attempt."""
    if math.isnan(score):
        return 0.0
    return max_interval if score >= 1.0 else min(1.0 / (1.0 - max(score, 0.0)), max_interval)


POLICIES: dict[str, Callable[[float, float], float]] = {
    "svcca": svcca_interval,
    "always": lambda _score, _max_interval: 0.0,
    "once": lambda _score, _max_interval: NEVER,
}


@dataclass(slots=True)
class Row:
    """One line of the log. `interval` and `counter` in attempts, `score` of the last comparison."""

    device: str
    batch: int
    score: float
    interval: float
    counter: int


class Controller:
    """`policy` is a key of POLICIES; `max_interval` and `max_age` are attempts of the same batch.

    Raises ConfigError for an unknown policy or a bound below 1.
    """

    def __init__(self, policy: str = "svcca", max_interval: float = 64.0, max_age: int = 128) -> None:
        if policy not in POLICIES:
            raise ConfigError(f"controller.policy: {policy!r} is unknown; known: {', '.join(POLICIES)}")
        if not (1 <= max_interval < math.inf and max_age >= 1):
            raise ConfigError(
                f"controller: max_interval ({max_interval}) and max_age ({max_age}) must be finite, 1 or more"
            )
        self._policy = POLICIES[policy]
        self._max_interval = max_interval
        self.max_age = max_age
        self.nan_scores = 0
        self._rows: dict[tuple[str, int], Row] = {}

    def attempt(self, device: str, batch: int) -> bool:
        """Algorithm 1's answer to one transfer request: True to send, False to skip.

        Unseen: send, with s = 0 (so i = 1 under `svcca`) and c = 0. Seen: send once c >= i or
        c >= max_age, and until `received` says that it came; else c grows by one.
        """
        row = self._rows.get((device, batch))
        if row is None:
            self._rows[device, batch] = Row(device, batch, 0.0, self._policy(0.0, self._max_interval), 0)
            return True
        if row.counter >= min(row.interval, self.max_age):
            return True
        row.counter += 1
        return False

    def received(self, device: str, batch: int, score: float) -> float:
        """The batch came, with `score` against the version before it (0.0 for a first one); c = 0.

        Returns the new interval: finite, 0 or more attempts to skip. What goes to the device is
        min(this, max_age), so that its copy need not know this side's age limit. A NaN score is
        counted in `nan_scores`.
        """
        self.nan_scores += math.isnan(score)
        interval = self._policy(score, self._max_interval)
        self._rows[device, batch] = Row(device, batch, score, interval, 0)
        return interval

    def table(self) -> list[Row]:
        """All rows, in the order in which the batches were first seen. Copies: changing one changes nothing."""
        return [Row(r.device, r.batch, r.score, r.interval, r.counter) for r in self._rows.values()]

    def reset(self) -> None:
        """A new run: every batch is unseen again. The counter of NaN scores stays."""
        self._rows.clear()
