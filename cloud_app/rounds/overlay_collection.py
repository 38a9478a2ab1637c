"""The overlays that have come, after the last round.

Knows edges and what they send. Knows no round and no file.
"""

from collections.abc import Container, Iterable, Mapping

from cloud_app.ensemble.model import misfit
from emo.config import CloudConfig
from emo.journal import Journal, log
from emo.wire.compression import Weights
from emo.wire.messages import OverlayWeights


class Gathering:
    """Of `run`, from the edges that `config` names. `like`: weights of an overlay that is not trained. `overlays`: those
    that came and are trained."""

    def __init__(self, run: str, config: CloudConfig, like: Weights, journal: Journal) -> None:
        self._run, self._edges, self._like, self._journal = run, config.overlays.edges, like, journal
        rounds = config.rounds
        seconds = rounds.rounds * (rounds.deadline_s + rounds.give_up_s) + config.overlays.wait_s
        self._most = 1e6 * seconds  # steps and batches; no honest edge comes near
        self._answered: set[str] = set()
        self.overlays: dict[str, OverlayWeights] = {}
        self._failed: dict[str, str] = {}  # who has said that it cannot train, and why

    def resume(self, run: str, answered: Iterable[str], overlays: Mapping[str, OverlayWeights]) -> None:
        """What another process had; perhaps of a version that took more."""
        self._run, self._answered = run, set(answered)
        self.overlays = {edge: each for edge, each in overlays.items() if self._sound(each)}

    def failed(self, edge: str, why: str) -> bool:
        """`edge` cannot train; False where that is known, or it is none of ours. Perhaps it can later, so it is waited for."""
        if edge not in self._edges or edge in self._failed:
            return False
        self._failed[edge] = why
        return True

    def add(self, overlay: OverlayWeights, out: Mapping[str, str]) -> bool:
        """False, and nothing changed, for one that is not expected, or brings nothing. `out`: who takes no part, and why."""
        edge = overlay.edge
        if edge in out:
            self._journal.problem("overlays.refused", f"overlay of {edge}: it takes no part: {out[edge]}")
            return False
        if overlay.run != self._run or edge not in self._edges:
            self._journal.problem(
                "overlays.refused", f"overlay of {edge}, run {overlay.run}: not expected here"
            )
            return False
        if not self._sound(overlay):
            self._answered.add(edge)  # it will not get better by waiting
            return True
        known = self.overlays.get(edge)
        if known is not None and known.steps >= overlay.steps:
            self._journal.count("overlays.duplicate")  # the edge came back, perhaps from its checkpoint
            return False
        self._answered.add(edge)
        if overlay.steps:
            self.overlays[edge] = overlay
            self._journal.event("overlay", edge, edge=edge, steps=overlay.steps)
            if known is None:
                log.info("the overlay of %s has come, %d steps", edge, overlay.steps)
        else:
            why = self._failed.get(edge, "it has received no batch")
            self._journal.problem("overlays.untrained", f"{edge}: its overlay is left out: {why}")
        return True

    def _sound(self, overlay: OverlayWeights) -> bool:
        counts = (overlay.steps, overlay.attempted, overlay.sent)
        why = misfit(self._like, overlay.weights) if overlay.steps else ""
        if max(counts) > self._most:
            why = f"{max(counts)} steps or batches cannot be, in the time that the run has"
        if why:
            self._journal.problem(
                "overlays.refused",
                f"overlay of {overlay.edge}: {why}; left out. Have edge and cloud the same `model`?",
            )
        return not why

    def answered(self) -> list[str]:
        """Who has sent an overlay, trained or not."""
        return sorted(self._answered)

    def lacking(self, out: Mapping[str, str]) -> dict[str, str]:
        """Whose overlay has not come, and why."""
        silent = (edge for edge in self._edges if edge not in self._answered)
        return {edge: out.get(edge) or self._failed.get(edge, "nothing has come") for edge in silent}

    def missing(self, out: Container[str]) -> list[str]:
        """Whose overlay is still to come; none of those in `out`."""
        return [edge for edge in self._edges if edge not in self._answered and edge not in out]
