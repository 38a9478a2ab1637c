"""The line in the journal of a round that is over, with the accuracy of its model."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from cloud_app.rounds.state import Closed, State, remember, sfl_bytes
from emo.config import CloudConfig
from emo.journal import Journal, log
from emo.wire.compression import digest
from emo.wire.messages import Weights

Evaluate = Callable[[Weights], tuple[float, float]]


class RoundReport:
    """`evaluate`: weights -> (accuracy, loss) on the test set."""

    def __init__(self, state: State, config: CloudConfig, journal: Journal, evaluate: Evaluate | None) -> None:
        self._state, self._config, self._journal, self._evaluate = state, config, journal, evaluate

    @property
    def slow(self) -> bool:
        """Whether there is something to measure."""
        return self._evaluate is not None

    def take(self, closed: Closed) -> None:
        """A round is over: its line is due."""
        self._state.closed = closed
        self._journal.count("updates.clipped", len(closed.clipped))
        self._journal.count("updates.outvoted", len(closed.outvoted))

    def write(self, lock: AbstractContextManager[object]) -> bool:
        """Writes the line, if one is due. Only that is done under `lock`, since measuring takes long."""
        state, closed, accuracy = self._state, self._state.closed, None
        if closed is None:
            return False
        weights = state.weights  # the round's result: the next round is not closed before this line is written
        mark = digest(weights)
        try:
            if self._evaluate is not None and closed.round % self._config.rounds.evaluate_every == 0:
                accuracy = round(self._evaluate(weights)[0], 4)
        finally:
            with lock:
                more = {"of": self._config.rounds.rounds, "accuracy": accuracy, "digest": mark}
                self._journal.event("round", run=state.run, **more, **closed.model_dump())
                counts = closed.updates, closed.sampled, len(closed.left_out)
                most = min(sfl_bytes(self._config, state), 2**53 - 1)
                remember(state, (closed.round, accuracy, closed.loss, closed.seconds, *counts, most))
                state.closed = None
        text = "" if accuracy is None else f", accuracy {accuracy:.2%}"
        log.info("round %d/%d%s", closed.round, self._config.rounds.rounds, text)
        return True
