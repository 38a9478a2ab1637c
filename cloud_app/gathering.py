"""The overlays that have come, after the last round.

Knows edges and what they send. Knows no round and no file.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from emo.journal import Journal, log
from emo.messages import OverlayWeights


class Gathering:
    """`edges`: whose overlays are expected in `run`. `overlays`: those that came and are trained."""

    def __init__(self, run: str, edges: Sequence[str], journal: Journal) -> None:
        self._run, self._edges, self._journal = run, edges, journal
        self._answered: set[str] = set()
        self.overlays: dict[str, OverlayWeights] = {}

    def resume(self, run: str, answered: Iterable[str], overlays: Mapping[str, OverlayWeights]) -> None:
        self._run, self._answered, self.overlays = run, set(answered), dict(overlays)

    def add(self, overlay: OverlayWeights) -> bool:
        """False, and nothing changed, for one that is not expected, or brings nothing."""
        edge = overlay.edge
        if overlay.run != self._run or edge not in self._edges:
            self._journal.problem(
                "overlays.refused", f"overlay of {edge}, run {overlay.run}: not expected here"
            )
            return False
        if not all(np.isfinite(array).all() for array in overlay.weights.values() if array.dtype.kind == "f"):
            self._journal.problem("overlays.refused", f"overlay of {edge}: holds NaN or infinity; left out")
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
            self._journal.problem(
                "overlays.untrained", f"{edge} has received no batch: its overlay is left out"
            )
        return True

    def answered(self) -> list[str]:
        """Who has sent an overlay, trained or not."""
        return sorted(self._answered)

    def missing(self) -> list[str]:
        return [edge for edge in self._edges if edge not in self._answered]
