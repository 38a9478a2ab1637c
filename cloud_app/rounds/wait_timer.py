"""For how long the cloud has waited, and when it stops.

Knows seconds. Knows neither what is waited for nor a clock.
"""

import logging
from collections.abc import Callable

from emo.errors import QuorumError
from emo.journal import log

_LINE_S = 10.0


class Patience:
    """`give_up_s`: how long one step may take."""

    def __init__(self, give_up_s: float) -> None:
        self._give_up_s = give_up_s
        self._since: float | None = None
        self._said = 0.0

    def begin(self, now: float) -> None:
        """The next step."""
        self._since = self._said = now

    def spent(self, now: float) -> float:
        """Seconds since this step began, which is now if nothing was said of it."""
        if self._since is None:
            self.begin(now)
        assert self._since is not None
        return now - self._since

    def bear(self, now: float, text: Callable[[], str]) -> None:
        """Log `text` every ten seconds. Raises QuorumError with it when this has lasted too long."""
        if self.spent(now) > self._give_up_s:
            raise QuorumError(f"{text()}. Started again, the cloud goes on with this round.")
        self.say(now, lambda: f"{text()}; waiting")

    def say(self, now: float, text: Callable[[], str], level: int = logging.WARNING) -> None:
        """Log `text`, every ten seconds."""
        if now - self._said > _LINE_S:
            self._said = now
            log.log(level, "%s", text())
