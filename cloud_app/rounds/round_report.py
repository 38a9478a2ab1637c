"""What is said of a round once it is over: one line in the journal, with the accuracy of its model.

Knows the journal and a callable that measures. Knows no phase.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

from cloud_app.rounds.checkpoint import Closed
from emo.config import Rounds
from emo.journal import Journal, log
from emo.wire.compression import digest
from emo.wire.messages import Weights

Evaluate = Callable[[Weights], tuple[float, float]]


class Telling:
    """`closed`: the round whose line is still to be written. `evaluate`: weights -> (accuracy, loss) on the test set."""

    def __init__(self, rounds: Rounds, journal: Journal, evaluate: Evaluate | None) -> None:
        self._rounds, self._journal, self._evaluate = rounds, journal, evaluate
        self.closed: Closed | None = None

    @property
    def slow(self) -> bool:
        """Whether there is something to measure."""
        return self._evaluate is not None

    def take(self, closed: Closed) -> None:
        """A round is over."""
        self.closed = closed
        self._journal.count("updates.clipped", len(closed.clipped))
        self._journal.count("updates.outvoted", len(closed.outvoted))

    def tell(self, run: str, weights: Weights, lock: AbstractContextManager[object]) -> bool:
        """Writes the line, if one is to be written; `weights` are the round's result. Only that is done under `lock`: what
        is measured takes its time."""
        closed, accuracy = self.closed, None
        if closed is None:
            return False
        mark = digest(weights)
        try:
            if self._evaluate is not None and closed.round % self._rounds.evaluate_every == 0:
                accuracy = round(self._evaluate(weights)[0], 4)
        finally:
            with lock:
                said = {"of": self._rounds.rounds, "accuracy": accuracy, "digest": mark}
                self._journal.event("round", run=run, **said, **closed.model_dump())
                self.closed = None
        text = "" if accuracy is None else f", accuracy {accuracy:.2%}"
        log.info("round %d/%d%s", closed.round, self._rounds.rounds, text)
        return True
