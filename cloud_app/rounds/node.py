"""The cloud's logic: FedAvg rounds, then it collects the overlays, of which cloud_app/run.py makes the ensemble.

    waiting -> collecting -> waiting ... -> overlays -> done

A message that depends on a step goes out after that step is on the disk. So a process that resumes from a checkpoint opens
the round that devices know, with the weights that they know, and asks those again that the checkpoint does not count.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cloud_app.aggregation import aggregator
from cloud_app.rounds.checkpoint import Checkpoints
from cloud_app.rounds.overlay_collection import OverlayCollection
from cloud_app.rounds.roster import Roster, reasons
from cloud_app.rounds.round import Round, history, retained
from cloud_app.rounds.round_report import Evaluate, RoundReport
from cloud_app.rounds.state import MOVES, Opened, Phase, State, as_sent, sfl_bytes
from cloud_app.rounds.wait_timer import WaitTimer
from emo.config import CloudConfig
from emo.errors import UpdateRefused, WireError
from emo.journal import Journal, log
from emo.logs import printable
from emo.models import split_network
from emo.models.state import PLAIN, Layout
from emo.runtime.runner import Node
from emo.wire.limits import Limits, of_weights
from emo.wire.messages import (
    CannotTrain,
    Facts,
    Message,
    OverlayWeights,
    Refused,
    Status,
    Unfit,
    Update,
)

_TOLD = 10  # nodes, of those that take no part


@dataclass(frozen=True)
class Host:
    """What a process provides to its node; in a simulation nothing. `evaluate`: weights -> (accuracy, loss) on
    the test set. `pause`: whether no round may be opened now. `folder`: for a round's updates, where its rule needs them
    all at once; None: a temporary one."""

    evaluate: Evaluate | None = None
    checkpoints: Checkpoints | None = None
    pause: Callable[[], bool] = lambda: False
    folder: Path | None = None


class CloudNode(Node):
    def __init__(
        self,
        config: CloudConfig,
        state: State,
        journal: Journal,
        host: Host = Host(),
        layout: Layout = PLAIN,
        facts: Facts | None = None,
    ) -> None:
        """`state`: of a new run, or from a checkpoint of the same settings. `facts`: what devices and edges must have in
        common with the cloud (emo/runtime/agreement.py). Raises ConfigError where a round's updates would not fit in `host.folder`.
        `tick` raises QuorumError when a round cannot be closed; the text names the devices."""
        aggregator.check(config.rounds, state.weights, host.folder)
        self._config, self.state, self._journal = config, state, journal
        self._host, self._layout = host, layout
        # A device notices within 1.5 keepalives that its broker is away, and comes back within 15 s (emo/mqtt/client.py).
        self._roster = Roster(state, 2 * config.wan.keepalive_s + 15, journal, facts or {})
        wanted = bool(config.overlays.edges)
        self._overlay = split_network.weights(split_network.overlay(config.model, seed=0)) if wanted else {}
        self._overlays = OverlayCollection(config, state, self._overlay, journal)
        self._report = RoundReport(state, config, journal, host.evaluate)
        self._timer = WaitTimer(config.rounds.give_up_s)
        self._round = self._opened(state.opened) if state.opened else None  # the last one that was opened
        self._paused = self._behind = False  # behind: there is more to save than the last checkpoint has
        self._now = 0.0  # of the last message or tick
        self._closed = False
        self._told = False  # whether this process has published the retained messages
        self._lock = threading.RLock()  # messages and ticks come on two threads

    @property
    def done(self) -> bool:
        return self.state.phase == "done"

    @property
    def _open(self) -> Round | None:
        return self._round if self.state.opened else None

    def hello(self, online: bool) -> Status:
        return Status(self._config.id, "cloud", online)

    def limits(self) -> Limits:
        """The largest messages that it takes."""
        return {
            Update: of_weights(Update, self.state.weights),
            OverlayWeights: of_weights(OverlayWeights, self._overlay),
        }

    def about(self) -> dict[str, object]:
        """For heartbeat.json. Takes no lock. `idle`: no round and no overlay is under way."""
        state, opened = self.state, self.state.opened
        cannot = self._round.cannot if self._round else {}
        return {
            "run": state.run,
            "round": state.round,
            "of": self._config.rounds.rounds,
            "phase": state.phase,
            "devices": len(state.devices),
            "sampled": len(opened.sampled) if opened else 0,
            "updates": len(opened.heard) if opened else 0,
            "out": dict(list((self._roster.out | cannot).items())[:_TOLD]),
            "paused": self._paused,
            "idle": self.done or (state.phase == "waiting" and self._paused),
        }

    def words(self) -> Mapping[str, str]:
        state = self.state
        rounds = f"{state.phase}, round {state.round} of {self._config.rounds.rounds}"
        return {"run": state.run, "doing": "paused" if self._paused else rounds}

    def gauges(self) -> dict[str, float]:
        """For metrics and reports. Takes no lock."""
        state, opened = self.state, self.state.opened
        return {
            "fl.round": state.round,
            "fl.rounds": self._config.rounds.rounds,
            "fl.devices": len(state.devices),
            "fl.asked": len(opened.sampled) if opened else 0,
            "fl.answered": len(opened.heard) if opened else 0,
            "fl.open_s": round(self._timer.spent(self._now)) if opened else 0,
            "fl.left_out": len(self._roster.out),
            "fl.updates": state.updates,
            "fl.sfl_bytes": sfl_bytes(self._config, state),
        }

    def forgotten(self) -> None:
        """The broker has lost its retained messages, and perhaps the news that a device has gone. Takes no lock, since a
        checkpoint may hold it; a status that is on its way is sent again."""
        self._roster.doubt()

    def restore(self) -> Iterator[Message | None]:
        """The retained messages of this phase, to a broker that has lost them."""
        with self._lock:
            yield from self._retained()

    def _retained(self) -> Iterator[Message]:
        missing = self._open.missing if self._open else ()  # who has answered is not asked again
        yield from retained(self._config, self.state, tuple(missing))
        yield from history(self._config, self.state)

    def handle(self, message: Message, now: float) -> Iterator[Message | None]:
        with self._lock:
            if self._closed:
                return  # the state is being exported
            if isinstance(message, Status):
                differs = self._roster.take(message)
                if differs:
                    yield Unfit(message.node, differs)
            elif isinstance(message, Update):
                yield from self._update(message)
            elif isinstance(message, CannotTrain):
                self._cannot_train(message)
            elif isinstance(message, OverlayWeights):
                first = message.edge in self._overlays.missing(())
                if self._overlays.add(message, self._roster.out):
                    self._behind = True
                    if first:  # one that repeats itself waits until a checkpoint is due
                        self._save()
            yield from self._move(now)

    def tick(self, now: float) -> Iterator[Message | None]:
        """Moves the phases on. Raises QuorumError."""
        with self._lock:
            yield from self._move(now)

    def _move(self, now: float) -> Iterator[Message | None]:
        self._now = now
        self._roster.expire(now)
        if not self._told:
            self._told = True
            yield from self._retained()
        if self.state.phase == "waiting":
            yield from self._wait(now)
        elif self._open:
            yield from self._collect(self._open, now)
        elif self.state.phase == "overlays":
            yield from self._gather(now)
        if not self._report.slow and self._report.write(self._lock):
            self._behind = True
            yield from history(self._config, self.state)
        checkpoints = self._host.checkpoints
        if self._behind and checkpoints is not None and checkpoints.due():
            self._save()

    def _enter(self, phase: Phase, now: float) -> None:
        assert phase in MOVES[self.state.phase], (self.state.phase, phase)
        self.state.phase = phase
        self._timer.begin(now)
        if phase != "waiting":
            self._save()

    # -- a round

    def _wait(self, now: float) -> Iterator[Message | None]:
        rounds, state = self._config.rounds, self.state
        if self._host.pause() != self._paused:
            self._paused = not self._paused
            self._journal.event("paused" if self._paused else "unpaused", round=state.round)
        if self._paused:
            self._timer.begin(now)
            return
        if len(state.devices) < rounds.min_devices:
            text = f"round {state.round} cannot start: "
            self._timer.wait(now, lambda: text + self._roster.too_few(rounds.min_devices))
            return
        edges = [edge for edge in self._config.overlays.edges if edge not in state.edges]
        if edges and state.round == 1 and self._timer.spent(now) < self._config.overlays.start_s:
            self._timer.wait(now, lambda: f"the first round waits for {', '.join(edges)}")
            return
        chosen = self._roster.choose(rounds.per_round, [rounds.seed, state.round])
        cap = aggregator.cap(rounds, [state.devices[device] for device in chosen])
        state.opened = Opened(sampled=tuple(chosen), cap=cap)
        self._round = self._opened(state.opened)
        self._enter("collecting", now)
        self._journal.event("opened", run=state.run, round=state.round, devices=chosen)
        yield from self._retained()

    def _opened(self, opened: Opened) -> Round:
        return Round(self._config, self.state, opened, self._host.folder, self._layout)

    def _cannot_train(self, message: CannotTrain) -> None:
        """A device of this round, or an edge, says that it cannot train. Logged once a round, and once a run of an edge."""
        node, this = message.node, self._open
        if message.run != self.state.run:
            known = True
        elif this and message.round == self.state.round and node in this.missing:
            known = node in this.cannot
            this.cannot[node] = message.reason
        else:
            known = not self._overlays.failed(node, message.reason)
        if known:
            self._journal.count("nodes.cannot_train")
            return
        text = f"{node} cannot train, in round {message.round}: {message.reason}"
        self._journal.problem("nodes.cannot_train", text)
        self._journal.event("cannot_train", node, node=node, round=message.round, why=message.reason)

    def _update(self, update: Update) -> Iterator[Message | None]:
        try:
            self._accept(update)
        except (UpdateRefused, WireError) as error:
            self._journal.problem("updates.refused", f"{update.device}, round {update.round}: {error}")
            yield Refused(update.run, update.device, update.round, printable(error, 500))

    def _accept(self, update: Update) -> None:
        state = self.state
        opened = state.opened if update.round == state.round else None
        closed, before = state.before
        counted = opened.heard if opened else before if update.round == closed else ()
        if update.run == state.run and update.device in counted:
            self._journal.count("updates.duplicate")
            return
        if update.run != state.run or not opened or not self._round:
            self._journal.count("updates.late")
            raise UpdateRefused(
                f"round {update.round} of run {update.run} is closed; this is {state.round} of {state.run}"
            )
        if update.device in self._roster.out:
            raise UpdateRefused(f"it takes no part: {self._roster.out[update.device]}")
        self._round.add(update)
        self._behind = True
        samples = opened.heard[update.device]
        if samples < update.samples:
            text = f"of {update.samples} samples {samples} are counted (rounds.max_weight)"
            self._journal.problem("updates.capped", f"{update.device}: {text}")
        self._journal.event("counted", run=state.run, round=state.round, device=update.device, samples=samples)

    def _collect(self, this: Round, now: float) -> Iterator[Message | None]:
        config, state, seconds = self._config, self.state, self._timer.spent(now)
        late = seconds >= config.rounds.deadline_s
        if this.missing and not (this.enough() and (late or not this.awaits(state.devices))):
            if late:
                self._timer.wait(now, lambda: f"round {state.round} {this.no_quorum(seconds)}")
            return
        if state.closed is not None:
            return  # the round before is still being measured
        weights, closed = this.close(state.devices, seconds)
        state.weights = as_sent(config, weights)
        state.trained += sum(closed.members.values()) * config.training.epochs
        state.updates += closed.updates
        state.before = closed.round, list(closed.members)
        state.opened = state.sum = None
        self._report.take(closed)
        if state.round < config.rounds.rounds:
            state.round += 1
            self._enter("waiting", now)
            yield from self._wait(now)
            if state.phase == "waiting":
                self._save()
            return
        self._enter("overlays", now)
        if missing := self._overlays.missing(self._roster.out):
            log.info("the rounds are over; waiting for the overlays of %s", ", ".join(missing))
        yield from self._retained()

    def work(self, now: float) -> Iterator[Message | None]:
        """Measures the round that is over, on a thread of its own, while devices train. The next round is not closed before
        that."""
        del now
        if self._report.slow and self._report.write(self._lock):
            self._behind = True
            yield None
            yield from history(self._config, self.state)

    # -- overlays

    def _gather(self, now: float) -> Iterator[Message | None]:
        missing, seconds = self._overlays.missing(self._roster.out), self._timer.spent(now)
        if self.state.closed is not None:
            return
        if missing and seconds < (most := self._config.overlays.wait_s):
            text = f"waiting for the overlays of {', '.join(missing)}, {seconds:.0f} of {most:.0f} s"
            self._timer.log(now, lambda: text, logging.INFO)
            return
        lacking = self._overlays.lacking(self._roster.out)
        if lacking:
            self._journal.problem("overlays.missing", f"going on without the overlays of {reasons(lacking)}")
        self._enter("done", now)
        yield from self._retained()

    # -- to outlive the process

    def _save(self) -> None:
        if self._host.checkpoints is not None:
            self._behind = not self._host.checkpoints.save(self.state)

    def close(self) -> None:
        """Before the run is exported or the process ends: save, so that no device is asked again that was counted. What comes
        after that changes nothing."""
        with self._lock:
            self._closed = True
            if self._behind:
                self._save()
