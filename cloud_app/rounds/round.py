"""One round: who was asked, what came of it, and who was left out and why.

Knows devices, their updates and what these come to. Knows no phase, no clock, no channel.
"""

from collections.abc import Container, Iterable, Mapping
from pathlib import Path

from cloud_app.aggregation import aggregator, exact_mean
from cloud_app.rounds.checkpoint import Closed, Reason
from cloud_app.rounds.roster import reasons
from emo.config import Rounds
from emo.errors import UpdateRefused
from emo.models.state import PLAIN, Layout
from emo.wire.compression import restore
from emo.wire.messages import Update, Weights

_MAX_LOSS = 1e12


class Round:
    """Round `number` of a run, from the weights `start`. `heard`: device -> samples that it counts for, of the updates in
    the sum; `loss`: the sum of their losses, each times these. `settings`, `folder`, `layout`: as
    aggregator.init has them; `cap`: the most samples that one device counts for."""

    def __init__(
        self,
        number: int,
        start: Weights,
        sampled: Iterable[str] = (),
        settings: Rounds | None = None,
        cap: int | None = None,
        folder: Path | None = None,
        layout: Layout = PLAIN,
        epochs: int = 1,
    ) -> None:
        self.number, self._start, self.cap = number, start, cap
        self.sampled = tuple(sampled)
        self.heard: dict[str, int] = {}
        self.missing = dict.fromkeys(self.sampled)  # a set, in order
        self.loss = 0.0
        self._settings = settings or Rounds()
        self._epochs = epochs
        self.aggregator = aggregator.init(self._settings, start, len(self.sampled), folder, layout)
        self._found: aggregator.Result | None = None
        self._refused: set[str] = set()
        self.cannot: dict[str, str] = {}  # who has said that it cannot train, and why

    def resume(self, heard: Mapping[str, int], loss: float, total: exact_mean.Sum) -> None:
        """Go on from what another process had: `total` is the sum of the updates of `heard`."""
        self.heard, self.loss = dict(heard), loss
        self.aggregator.sum = total
        self.missing = {name: None for name in self.sampled if name not in heard}

    def total(self) -> exact_mean.Sum | None:
        """For `resume`; None where there is none, and all have to be asked again."""
        return self.aggregator.sum if self.heard else None

    def add(self, update: Update) -> None:
        """Count one update of this round. Raises UpdateRefused or CodecError, with nothing counted."""
        if update.device not in self.missing:
            raise UpdateRefused(f"{update.device} was not asked in round {update.round}")
        self._refused.add(update.device)
        if update.loss is None or abs(update.loss) > _MAX_LOSS:
            raise UpdateRefused("the training loss is not a number; is the learning rate too high?")
        weights = restore(update.weights, update.form, self._start)
        counted = update.samples if self.cap is None else min(update.samples, self.cap)
        self.aggregator.add(update.device, weights, counted, update.samples * self._epochs)
        self._refused.discard(update.device)
        self.cannot.pop(update.device, None)
        self.heard[update.device] = counted
        self.loss += update.loss * counted
        del self.missing[update.device]

    def mean(self) -> Weights:
        """The new global model; may be asked once. Raises UpdateRefused as Aggregator.result does."""
        self._found = self.aggregator.result()
        return self._found.weights

    def enough(self) -> bool:
        """Whether the round may close with what has come: the quorum of those that can train, who are not too few."""
        able, asked = len(self.sampled) - len(self.cannot), len(self.sampled)
        least = self._settings.least(asked), self._settings.quorum * able
        return len(self.heard) >= max(least) and able >= min(asked, self._settings.min_devices)

    def awaits(self, online: Container[str]) -> bool:
        """Whether somebody who is here has still to answer."""
        silent = (name for name in self.missing if name not in self._refused and name not in self.cannot)
        return any(name in online for name in silent)

    def no_quorum(self, seconds: float) -> str:
        """For people."""
        text = f"{len(self.heard)} of {len(self.sampled)} updates after {seconds:.0f} s"
        silent = ", ".join(name for name in self.missing if name not in self.cannot)
        said = f"has no quorum: {text}; missing: {silent or 'nobody'}"
        return f"{said}; cannot train: {reasons(self.cannot)}" if self.cannot else said

    def closed(self, online: Container[str], seconds: float) -> Closed:
        """What is left to be said of it, after `mean`, `seconds` after it was opened."""
        assert self._found is not None
        left_out: dict[str, Reason] = {
            name: "cannot-train"
            if name in self.cannot
            else "refused"
            if name in self._refused
            else "late"
            if name in online
            else "offline"
            for name in self.missing
        }
        return Closed(
            round=self.number,
            updates=len(self.heard),
            sampled=len(self.sampled),
            loss=round(self.loss / sum(self.heard.values()), 4),
            seconds=round(seconds, 3),
            members=self.heard,
            left_out=left_out,
            clipped=self._found.clipped,
            outvoted=self._found.left_out,
        )
