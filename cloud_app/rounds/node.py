"""The cloud: FedAvg rounds, then the overlays.

Knows rounds as a table of phases and who may move them, and what has to be on the disk before the next step; opens no
socket, reads no clock. What to do with the overlays is `cloud_app.run`'s.

    waiting -> collecting -> waiting ... -> overlays -> done

A message that depends on a step goes out after that step is on the disk. So whoever goes on from a checkpoint asks for
the round that devices know, with the weights that they know: for each that is not counted there, once more.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from cloud_app.aggregation import aggregator
from cloud_app.rounds.checkpoint import MOVES, Checkpoints, Phase, Standing, State, Trained, settings
from cloud_app.rounds.overlay_collection import Gathering
from cloud_app.rounds.roster import Roster, reasons
from cloud_app.rounds.round import Round
from cloud_app.rounds.round_report import Evaluate, Telling
from cloud_app.rounds.sending import as_sent, global_head, global_model
from cloud_app.rounds.wait_timer import Patience
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
    GlobalModel,
    Message,
    OverlayWeights,
    Refused,
    RunState,
    Status,
    Unfit,
    Update,
    Weights,
)

_TOLD = 10  # nodes, of those that take no part


class CloudNode(Node):
    def __init__(
        self,
        config: CloudConfig,
        run: str,
        weights: Weights,
        journal: Journal,
        evaluate: Evaluate | None = None,
        keep: Checkpoints | None = None,
        pause: Callable[[], bool] = lambda: False,
        folder: Path | None = None,
        layout: Layout = PLAIN,
        facts: Facts | None = None,
    ) -> None:
        """`weights`: of the untrained FL model. `evaluate`: weights -> (accuracy, loss) on the test set. `keep`: None in
        a simulation. `pause`: whether to open no round for now. `folder`: for a round's updates, where its rule has to see
        them all; None: a temporary one. Raises ConfigError where they would not fit there. `facts`: what devices and
        edges must have alike (agreement.py). `tick` raises QuorumError when a round cannot be closed; the text names the
        devices."""
        aggregator.check(config.rounds, weights, folder)
        self._config, self._journal = config, journal
        self._keep, self._pause, self._folder, self._layout = keep, pause, folder, layout
        self.run, self.weights = run, as_sent(config, dict(weights))
        self.phase: Phase = "waiting"
        self.round = 1
        # A device notices within 1.5 keepalives that its broker is away, and comes back within 15 s (client.py).
        self._roster = Roster(2 * config.wan.keepalive_s + 15, journal, facts or {})
        asked = bool(config.overlays.edges)
        self._overlay = split_network.weights(split_network.overlay(config.model, seed=0)) if asked else {}
        self._gathering = Gathering(run, config, self._overlay, journal)
        self._open = Round(0, self.weights)
        self._before: tuple[int, list[str]] = 0, []  # the last closed round, who was counted in it
        self._telling = Telling(config.rounds, journal, evaluate)
        self._patience = Patience(config.rounds.give_up_s)
        self.trained = self.updates = 0  # samples that passed through training, updates averaged
        self._paused = self._resumed = self._behind = False
        self._lock = threading.RLock()  # messages and ticks come on two threads

    @property
    def done(self) -> bool:
        return self.phase == "done"

    @property
    def overlays(self) -> Mapping[str, OverlayWeights]:
        """The trained ones that have come, by edge."""
        return self._gathering.overlays

    def hello(self, online: bool) -> Status:
        return Status(self._config.id, "cloud", online)

    def limits(self) -> Limits:
        """How large a message may be that it takes."""
        return {
            Update: of_weights(Update, self.weights),
            OverlayWeights: of_weights(OverlayWeights, self._overlay),
        }

    def about(self) -> dict[str, object]:
        """For people and playbooks. Waits for nothing. `idle`: no round and no overlay is under way."""
        asked = self.phase == "collecting"
        return {
            "run": self.run,
            "round": self.round,
            "of": self._config.rounds.rounds,
            "phase": self.phase,
            "devices": len(self._roster.devices),
            "sampled": len(self._open.sampled) if asked else 0,
            "updates": len(self._open.heard) if asked else 0,
            "out": dict(list((self._roster.out | self._open.cannot).items())[:_TOLD]),
            "paused": self._paused,
            "idle": self.done or (self.phase == "waiting" and self._paused),
        }

    def forgotten(self) -> None:
        """With the retained messages the broker has perhaps lost who has gone. Without the lock, which a checkpoint may
        hold: a status that was on its way is said again."""
        self._roster.doubt()

    def restore(self) -> Iterator[Message | None]:
        """The retained messages of this phase, to a broker that has lost them."""
        with self._lock:
            yield from self._retained()

    def _retained(self) -> Iterator[Message]:
        total = self._config.rounds.rounds
        if self.phase == "collecting":
            yield RunState(self.run, self.round, total, "training")
            yield from self._head(self.round)
            yield self._model(self.round, *self._open.missing)  # who has answered is not asked again
        elif self.phase != "waiting":
            yield RunState(self.run, self.round, total, "done" if self.done else "finishing")
            if not self.done:
                yield from self._head(self.round + 1)
            yield self._model(self.round + 1)

    def _model(self, number: int, *devices: str) -> GlobalModel:
        return global_model(self._config, self.run, number, devices, self.weights)

    def _head(self, number: int) -> Iterator[Message]:
        overlays = self._config.overlays
        if overlays.edges and overlays.judge:
            yield global_head(self._config, self.run, number, self.weights)

    def handle(self, message: Message, now: float) -> Iterator[Message | None]:
        with self._lock:
            if isinstance(message, Status):
                differs = self._roster.take(message, self.round)
                if differs:
                    yield Unfit(message.node, differs)
            elif isinstance(message, Update):
                yield from self._update(message)
            elif isinstance(message, CannotTrain):
                self._cannot_train(message)
            elif isinstance(message, OverlayWeights):
                first = message.edge in self._gathering.missing(())
                if self._gathering.add(message, self._roster.out):
                    self._behind = True
                    if first:  # one that repeats itself waits until a checkpoint is due
                        self._save()
            yield from self._move(now)

    def tick(self, now: float) -> Iterator[Message | None]:
        """Moves the phases on. Raises QuorumError."""
        with self._lock:
            yield from self._move(now)

    def _move(self, now: float) -> Iterator[Message | None]:
        self._roster.expire(now, self.round)
        if self._resumed:
            self._resumed = False
            yield from self._retained()
        if self.phase == "waiting":
            yield from self._wait(now)
        elif self.phase == "collecting":
            yield from self._collect(now)
        elif self.phase == "overlays":
            yield from self._gather(now)
        if not self._telling.slow:
            self._behind |= self._telling.tell(self.run, self.weights, self._lock)
        if self._behind and self._keep is not None and self._keep.due():
            self._save()

    def _enter(self, phase: Phase, now: float) -> None:
        assert phase in MOVES[self.phase], (self.phase, phase)
        self.phase = phase
        self._patience.begin(now)
        if phase != "waiting":
            self._save()

    # -- a round

    def _wait(self, now: float) -> Iterator[Message | None]:
        rounds = self._config.rounds
        if self._pause() != self._paused:
            self._paused = not self._paused
            self._journal.event("paused" if self._paused else "unpaused", round=self.round)
        if self._paused:
            self._patience.begin(now)
            return
        if len(self._roster.devices) < rounds.min_devices:
            text = f"round {self.round} cannot start: "
            self._patience.bear(now, lambda: text + self._roster.too_few(rounds.min_devices))
            return
        edges = [edge for edge in self._config.overlays.edges if edge not in self._roster.edges]
        if edges and self.round == 1 and self._patience.spent(now) < self._config.overlays.start_s:
            self._patience.bear(now, lambda: f"the first round waits for {', '.join(edges)}")
            return
        chosen = self._roster.choose(rounds.per_round, [rounds.seed, self.round])
        cap = aggregator.cap(rounds, [self._roster.devices[device] for device in chosen])
        self._open = self._round(chosen, cap)
        self._enter("collecting", now)
        self._journal.event("opened", run=self.run, round=self.round, devices=chosen)
        yield from self._retained()

    def _round(self, sampled: Sequence[str], cap: int | None) -> Round:
        rounds, epochs = self._config.rounds, self._config.training.epochs
        return Round(self.round, self.weights, sampled, rounds, cap, self._folder, self._layout, epochs)

    def _cannot_train(self, message: CannotTrain) -> None:
        """The first time in a round, and of an edge in a run: nobody waits for it any more."""
        node, asked = message.node, self.phase == "collecting" and message.round == self.round
        if message.run != self.run:
            known = True
        elif asked and node in self._open.missing:
            known = node in self._open.cannot
            self._open.cannot[node] = message.reason
        else:
            known = not self._gathering.failed(node, message.reason)
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
        opened = self.phase == "collecting" and update.round == self.round
        closed, before = self._before
        counted = self._open.heard if opened else before if update.round == closed else ()
        if update.run == self.run and update.device in counted:
            self._journal.count("updates.duplicate")
            return
        if update.run != self.run or not opened:
            self._journal.count("updates.late")
            raise UpdateRefused(
                f"round {update.round} of run {update.run} is closed; this is {self.round} of {self.run}"
            )
        if update.device in self._roster.out:
            raise UpdateRefused(f"it takes no part: {self._roster.out[update.device]}")
        self._open.add(update)
        self._behind = True
        samples = self._open.heard[update.device]
        if samples < update.samples:
            text = f"of {update.samples} samples {samples} are counted (rounds.max_weight)"
            self._journal.problem("updates.capped", f"{update.device}: {text}")
        self._journal.event("counted", run=self.run, round=self.round, device=update.device, samples=samples)

    def _collect(self, now: float) -> Iterator[Message | None]:
        rounds, this, seconds = self._config.rounds, self._open, self._patience.spent(now)
        late = seconds >= rounds.deadline_s
        if this.missing and not (this.enough() and (late or not this.awaits(self._roster.devices))):
            if late:
                self._patience.bear(now, lambda: f"round {self.round} {this.no_quorum(seconds)}")
            return
        if self._telling.closed is not None:
            return  # the round before is still being measured
        self.weights = as_sent(self._config, this.mean())
        self.trained += sum(this.heard.values()) * self._config.training.epochs
        self.updates += len(this.heard)
        self._telling.take(this.closed(self._roster.devices, seconds))
        self._before = self.round, list(this.heard)
        if self.round < rounds.rounds:
            self.round += 1
            self._enter("waiting", now)
            yield from self._wait(now)
            if self.phase == "waiting":
                self._save()
            return
        self._enter("overlays", now)
        if missing := self._gathering.missing(self._roster.out):
            log.info("the rounds are over; waiting for the overlays of %s", ", ".join(missing))
        yield from self._retained()

    def work(self, now: float) -> Iterator[Message | None]:
        """Measures the round that is over, on a thread of its own: the devices train meanwhile. The next is not closed
        before that."""
        del now
        if self._telling.slow and self._telling.tell(self.run, self.weights, self._lock):
            self._behind = True
            yield None

    # -- overlays

    def _gather(self, now: float) -> Iterator[Message | None]:
        missing, seconds = self._gathering.missing(self._roster.out), self._patience.spent(now)
        if self._telling.closed is not None:
            return
        if missing and seconds < (most := self._config.overlays.wait_s):
            text = f"waiting for the overlays of {', '.join(missing)}, {seconds:.0f} of {most:.0f} s"
            self._patience.say(now, lambda: text, logging.INFO)
            return
        lacking = self._gathering.lacking(self._roster.out)
        if lacking:
            self._journal.problem("overlays.missing", f"going on without the overlays of {reasons(lacking)}")
        self._enter("done", now)
        yield from self._retained()

    # -- to outlive the process

    def _save(self) -> None:
        if self._keep is not None:
            self._behind = not self._keep.save(self.state())

    def close(self) -> None:
        """Before the process ends: who was counted is not asked again."""
        with self._lock:
            if self._behind:
                self._save()

    def state(self) -> State:
        """All that the rest of the run depends on; its arrays are this node's own."""
        this, gathering, opened = self._open, self._gathering, self.phase == "collecting"
        said = Standing(
            settings=settings(self._config),
            run=self.run,
            phase=self.phase,
            round=self.round,
            online=self._roster.devices,
            edges=sorted(self._roster.edges),
            sampled=list(this.sampled) if opened else [],
            cap=this.cap if opened else None,
            heard=this.heard if opened else {},
            loss=this.loss if opened else 0,
            before=self._before,
            trained=self.trained,
            updates=self.updates,
            closed=self._telling.closed,
            answered=gathering.answered(),
            overlays={edge: Trained.of(each) for edge, each in gathering.overlays.items()},
        )
        return State(said, self.weights, this.total() if opened else None, gathering.overlays)

    def resume(self, state: State) -> None:
        """Before the first message: go on from what another process of the same settings had."""
        said = state.said
        self.run, self.phase, self.round, self.weights = said.run, said.phase, said.round, state.model
        self._roster.resume(said.online, said.edges)
        self._open = self._round(said.sampled, said.cap)
        if state.total is not None:
            self._open.resume(said.heard, said.loss, state.total)
        self._before, self._telling.closed = said.before, said.closed
        self.trained, self.updates = said.trained, said.updates
        self._gathering.resume(said.run, said.answered, state.overlays)
        self._resumed = True
        told = {"run": self.run, "round": self.round, "phase": self.phase}
        self._journal.event("resumed", **told, sampled=said.sampled, counted=sorted(self._open.heard))
