"""Records why a device or an edge does not take part as it should: once in its log and events, for as long as it lasts in
`emo health`, and in words that fit into a message to the cloud."""

from emo.errors import EmoError
from emo.journal import Journal, log
from emo.logs import printable
from emo.wire.messages import Unfit

_REASON = 300  # characters, so that it fits into a Status


class Trouble:
    """The trouble of `node`. `why`: empty if there is none."""

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
        """The cloud does not let it take part."""
        self._take("unfit", f"the cloud does not let it take part: {message.reason}")

    def over(self) -> None:
        self.why = ""

    def _take(self, event: str, why: str, bug: Exception | None = None) -> None:
        self._journal.count(f"trouble.{event}")
        if why != self.why:
            self.why = why
            self._journal.event(event, why=why)
            log.warning("%s: %s", self._node, printable(why), exc_info=bug)
