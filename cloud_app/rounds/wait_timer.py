"""For how long the cloud has waited in one step, and when it gives up."""

import logging
from collections.abc import Callable

from emo.errors import QuorumError
from emo.journal import log

_LINE_S = 10.0


class WaitTimer:
    """`give_up_s`: how long one step may take."""

    def __init__(self, give_up_s: float) -> None:
        self._give_up_s = give_up_s
        self._since: float | None = None
        self._logged = 0.0

    def begin(self, now: float) -> None:
        """The next step."""
        self._since = self._logged = now

    def spent(self, now: float) -> float:
        """Seconds since this step began, which is now if `begin` was not called."""
        if self._since is None:
            self.begin(now)
        assert self._since is not None
        return now - self._since

    def wait(self, now: float, text: Callable[[], str]) -> None:
        """Log `text` every ten seconds. Raises QuorumError with it when this has lasted too long."""
        if self.spent(now) > self._give_up_s:
            raise QuorumError(f"{text()}. Started again, the cloud goes on with this round.")
        self.log(now, lambda: f"{text()}; waiting")

    def log(self, now: float, text: Callable[[], str], level: int = logging.WARNING) -> None:
        """Log `text`, every ten seconds."""
        if now - self._logged > _LINE_S:
            self._logged = now
            log.log(level, "%s", text())
