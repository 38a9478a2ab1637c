"""The overlays that edges send after the last round."""

from collections.abc import Container, Mapping

from cloud_app.ensemble.model import misfit
from cloud_app.ensemble.run_archive import Edge
from cloud_app.rounds.state import State
from emo.config import CloudConfig
from emo.journal import Journal, log
from emo.wire.messages import OverlayWeights, Weights


class OverlayCollection:
    """Those in `state`, from the edges that `config` names. `like`: weights of an overlay that is not trained."""

    def __init__(self, config: CloudConfig, state: State, like: Weights, journal: Journal) -> None:
        self._state, self._edges, self._like, self._journal = state, config.overlays.edges, like, journal
        rounds = config.rounds
        seconds = rounds.rounds * (rounds.deadline_s + rounds.give_up_s) + config.overlays.wait_s
        self._most = 1e6 * seconds  # steps and batches; no honest edge comes near
        self._failed: dict[str, str] = {}  # edges that cannot train -> why
        for edge, counts in list(state.overlays.items()):  # perhaps of a version that took more
            if not self._sound(edge, counts, state.overlay_weights[edge]):
                del state.overlays[edge], state.overlay_weights[edge]

    def failed(self, edge: str, why: str) -> bool:
        """`edge` cannot train. False if that is known, or the edge is none of ours. It is still waited for: perhaps it can
        later."""
        if edge not in self._edges or edge in self._failed:
            return False
        self._failed[edge] = why
        return True

    def add(self, overlay: OverlayWeights, out: Mapping[str, str]) -> bool:
        """False, with nothing changed, for an overlay that is not expected or not newer. `out`: nodes that take no part, and
        why."""
        edge, state = overlay.edge, self._state
        if edge in out:
            self._journal.problem("overlays.refused", f"overlay of {edge}: it takes no part: {out[edge]}")
            return False
        if overlay.run != state.run or edge not in self._edges:
            self._journal.problem("overlays.refused", f"overlay of {edge}, run {overlay.run}: not expected here")
            return False
        counts = Edge(steps=overlay.steps, attempted=overlay.attempted, sent=overlay.sent)
        if not self._sound(edge, counts, overlay.weights):
            state.answered.add(edge)  # it will not get better by waiting
            return True
        known = state.overlays.get(edge)
        if known is not None and known.steps >= overlay.steps:
            self._journal.count("overlays.duplicate")  # the edge came back, perhaps from its checkpoint
            return False
        state.answered.add(edge)
        if overlay.steps:
            state.overlays[edge], state.overlay_weights[edge] = counts, dict(overlay.weights)
            self._journal.event("overlay", edge, edge=edge, steps=overlay.steps)
            if known is None:
                log.info("the overlay of %s has come, %d steps", edge, overlay.steps)
        else:
            why = self._failed.get(edge, "it has received no batch")
            self._journal.problem("overlays.untrained", f"{edge}: its overlay is left out: {why}")
        return True

    def _sound(self, edge: str, counts: Edge, weights: Weights) -> bool:
        most = max(counts.steps, counts.attempted, counts.sent)
        why = misfit(self._like, weights) if counts.steps else ""
        if most > self._most:
            why = f"{most} steps or batches cannot be, in the time that the run has"
        if why:
            self._journal.problem(
                "overlays.refused",
                f"overlay of {edge}: {why}; left out. Have edge and cloud the same `model`?",
            )
        return not why

    def lacking(self, out: Mapping[str, str]) -> dict[str, str]:
        """Edges whose overlay has not come, and why."""
        return {edge: out.get(edge) or self._failed.get(edge, "nothing has come") for edge in self.missing(())}

    def missing(self, out: Container[str]) -> list[str]:
        """Edges whose overlay is still to come, without those in `out`."""
        return [edge for edge in self._edges if edge not in self._state.answered and edge not in out]
