"""One round: which devices were asked, their updates, whether it may close (node.py adds the deadline), which were left
out and why; and the messages that announce it."""

from collections.abc import Container, Iterator, Mapping
from pathlib import Path

from cloud_app.aggregation import aggregator
from cloud_app.rounds.roster import reasons
from cloud_app.rounds.state import Closed, Opened, Reason, State
from emo.config import CloudConfig
from emo.errors import UpdateRefused
from emo.models.state import PLAIN, Layout
from emo.wire.compression import restore, shrink
from emo.wire.messages import GlobalHead, GlobalModel, RunHistory, RunState, Update, Weights

_MAX_LOSS = 1e12


class Round:
    """The round that `state` has open. `folder`, `layout`: as in aggregator.init. `missing`: devices that have not
    answered; `cannot`: devices that cannot train -> why."""

    def __init__(
        self, config: CloudConfig, state: State, opened: Opened, folder: Path | None, layout: Layout = PLAIN
    ) -> None:
        self.number, self._start, self._opened = state.round, state.weights, opened
        self._settings, self._epochs = config.rounds, config.training.epochs
        self._aggregator = aggregator.init(config.rounds, state.weights, len(opened.sampled), folder, layout)
        if state.sum is not None:
            self._aggregator.sum = state.sum
        else:  # updates that are kept one by one end with their process: their devices are asked again
            opened.heard, opened.loss = {}, 0.0
            state.sum = self._aggregator.sum
        self.missing = {name: None for name in opened.sampled if name not in opened.heard}  # a set, in order
        self.cannot: dict[str, str] = {}
        self._refused: set[str] = set()

    def add(self, update: Update) -> None:
        """Count one update of this round. Raises UpdateRefused or CodecError, with nothing counted."""
        device, opened = update.device, self._opened
        if device not in self.missing:
            raise UpdateRefused(f"{device} was not asked in round {update.round}")
        self._refused.add(device)
        if update.loss is None or abs(update.loss) > _MAX_LOSS:
            raise UpdateRefused("the training loss is not a number; is the learning rate too high?")
        weights = restore(update.weights, update.form, self._start)
        counted = update.samples if opened.cap is None else min(update.samples, opened.cap)
        self._aggregator.add(device, weights, counted, update.samples * self._epochs)
        self._refused.discard(device)
        self.cannot.pop(device, None)
        opened.heard[device] = counted
        opened.loss += update.loss * counted
        del self.missing[device]

    def enough(self) -> bool:
        """Whether the round may close with what has come: a quorum of the devices that can train, which are not too few."""
        asked = len(self._opened.sampled)
        able = asked - len(self.cannot)
        least = self._settings.least(asked), self._settings.quorum * able
        return len(self._opened.heard) >= max(least) and able >= min(asked, self._settings.min_devices)

    def awaits(self, online: Container[str]) -> bool:
        """Whether a device that is online has still to answer."""
        silent = (name for name in self.missing if name not in self._refused and name not in self.cannot)
        return any(name in online for name in silent)

    def no_quorum(self, seconds: float) -> str:
        """For people."""
        heard, asked = len(self._opened.heard), len(self._opened.sampled)
        silent = ", ".join(name for name in self.missing if name not in self.cannot) or "nobody"
        text = f"has no quorum: {heard} of {asked} updates after {seconds:.0f} s; missing: {silent}"
        return f"{text}; cannot train: {reasons(self.cannot)}" if self.cannot else text

    def close(self, online: Container[str], seconds: float) -> tuple[Weights, Closed]:
        """The new global model, `seconds` after the round was opened, and what there is to say of it; may be asked once.
        Raises UpdateRefused as Aggregator.result does."""
        opened, outcome = self._opened, self._aggregator.result()
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
        return outcome.weights, Closed(
            round=self.number,
            updates=len(opened.heard),
            sampled=len(opened.sampled),
            loss=round(opened.loss / sum(opened.heard.values()), 4),
            seconds=round(seconds, 3),
            members=opened.heard,
            left_out=left_out,
            clipped=outcome.clipped,
            outvoted=outcome.left_out,
        )


def retained(
    config: CloudConfig, state: State, asked: tuple[str, ...]
) -> Iterator[RunState | GlobalHead | GlobalModel]:
    """The retained messages of the phase. `asked`: the devices that are to train; after the last round nobody is."""
    total, overlays, form = config.rounds.rounds, config.overlays, config.rounds.model
    if state.phase == "waiting":
        return
    if state.phase == "collecting":
        number = state.round
        yield RunState(state.run, state.round, total, "training")
    else:
        number = state.round + 1
        yield RunState(state.run, state.round, total, "done" if state.phase == "done" else "finishing")
    weights = state.weights
    if overlays.edges and overlays.judge and state.phase != "done":
        head = {name.removeprefix("head."): array for name, array in weights.items() if name.startswith("head.")}
        yield GlobalHead(state.run, number, shrink(head, form, head), form)
    fresh = number > total - overlays.fresh_rounds
    yield GlobalModel(state.run, number, asked, config.training, shrink(weights, form, weights), form, fresh)


def history(config: CloudConfig, state: State, result: Mapping[str, float] | None = None) -> Iterator[RunHistory]:
    """The rounds so far, for observers; nothing where there is none, or they are told nothing."""
    if config.report_s is not None and state.history:
        yield RunHistory(state.run, config.rounds.rounds, tuple(state.history), dict(result or {}))
