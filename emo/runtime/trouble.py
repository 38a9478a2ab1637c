"""Why a device or an edge takes no part as it should: said once in its own log and events, for as long as it lasts by `emo
health`, and in words that fit into a message to the cloud."""

from emo.errors import EmoError
from emo.journal import Journal, log
from emo.logs import printable
from emo.wire.messages import Unfit

_REASON = 300  # characters: in a Status beside everything else


class Trouble:
    """Of `node`. `why`: empty where there is none."""

    def __init__(self, node: str, journal: Journal) -> None:
        self._node, self._journal = node, journal
        self.why = ""

    def failed(self, what: str, error: Exception) -> str:
        """`what` failed with `error`; the reason to send. A traceback is logged with it, unless the error is one of ours."""
        reason = printable(f"{what}: {type(error).__name__}: {error}", _REASON)
        bug = None if isinstance(error, EmoError) else error
        self._take("cannot_train", f"cannot train: {reason}", bug)
        return reason

    def unfit(self, message: Unfit) -> None:
        """The cloud will not have it."""
        self._take("unfit", f"the cloud does not let it take part: {message.reason}")

    def over(self) -> None:
        self.why = ""

    def _take(self, event: str, why: str, bug: Exception | None = None) -> None:
        self._journal.count(f"trouble.{event}")
        if why != self.why:
            self.why = why
            self._journal.event(event, why=why)
            log.warning("%s: %s", self._node, printable(why), exc_info=bug)
