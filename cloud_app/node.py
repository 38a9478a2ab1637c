"""The cloud: FedAvg rounds, then the overlays.

Knows rounds as a table of phases and who may move them; opens no socket, reads no clock. What to do with the
overlays is `cloud_app.__main__`'s.

    waiting -> collecting -> waiting ... -> overlays -> done
"""

import threading
from collections.abc import Callable, Iterator

import numpy as np

from cloud_app import fedavg
from emo.config import CloudConfig
from emo.errors import QuorumError, UpdateRefused, WireError
from emo.journal import Journal, log
from emo.messages import GlobalModel, Message, OverlayWeights, Refused, RunState, Status, Update, Weights
from emo.weights import restore, shrink

Evaluate = Callable[[Weights], tuple[float, float]]

_MOVES = {
    "waiting": {"collecting"},
    "collecting": {"waiting", "overlays"},
    "overlays": {"done"},
    "done": set[str](),
}


class CloudNode:
    def __init__(
        self,
        config: CloudConfig,
        run: str,
        weights: Weights,
        journal: Journal,
        evaluate: Evaluate | None = None,
    ) -> None:
        """`weights`: of the untrained FL model. `evaluate`: weights -> (accuracy, loss) on the test set.

        `tick` raises QuorumError when a round cannot be closed; the text names the devices.
        """
        self._config, self._journal, self._evaluate = config, journal, evaluate
        self.run, self.weights, self.overlays = run, self._as_sent(dict(weights)), dict[str, OverlayWeights]()
        self.phase, self.round = "waiting", 1
        self._samples: dict[str, int] = {}  # of the devices that are online
        self._edges: set[str] = set()  # that are online
        self._answered: set[str] = set()  # edges that have sent an overlay, trained or not
        self._sampled: tuple[str, ...] = ()
        self._heard: dict[str, int] = {}  # device -> samples, of this round's accepted updates
        self.trained = self.updates = 0  # samples that passed through training, updates averaged
        self._loss = 0.0
        self._sum = fedavg.init(self.weights)
        self._record: dict[str, object] = {}  # of the last closed round
        self._since: float | None = None
        self._said = 0.0
        self._lock = threading.RLock()  # messages and ticks come on two threads

    @property
    def done(self) -> bool:
        return self.phase == "done"

    def hello(self, online: bool) -> Status:
        return Status(self._config.id, "cloud", online)

    def restore(self) -> Iterator[Message | None]:
        """The retained messages of this phase."""
        with self._lock:
            total = self._config.rounds.rounds
            if self.phase == "collecting":
                yield RunState(self.run, self.round, total, "training")
                yield self._model(self.round, self._sampled)
            elif self.phase != "waiting":
                yield RunState(self.run, self.round, total, "done" if self.done else "finishing")
                yield self._model(self.round + 1, ())

    def _model(self, number: int, devices: tuple[str, ...]) -> GlobalModel:
        form = self._config.rounds.model
        sent = shrink(self.weights, form, self.weights)
        fresh = number > self._config.rounds.rounds - self._config.overlays.fresh_rounds
        return GlobalModel(self.run, number, devices, self._config.training, sent, form, fresh)

    def _as_sent(self, weights: Weights) -> Weights:
        # The cloud goes on from what devices read: that is what their deltas are made against.
        form = self._config.rounds.model
        return restore(shrink(weights, form, weights), form, weights)

    def handle(self, message: Message, now: float) -> Iterator[Message | None]:
        with self._lock:
            if isinstance(message, Status):
                self._status(message)
            elif isinstance(message, Update):
                yield from self._update(message)
            elif isinstance(message, OverlayWeights):
                self._overlay(message)
            yield from self._move(now)

    def tick(self, now: float) -> Iterator[Message | None]:
        """Moves the phases on. Raises QuorumError."""
        with self._lock:
            yield from self._move(now)

    def _move(self, now: float) -> Iterator[Message | None]:
        if self._since is None:
            self._since = self._said = now
        if self.phase == "waiting":
            yield from self._wait(now)
        elif self.phase == "collecting":
            yield from self._collect(now)
        elif self.phase == "overlays":
            yield from self._gather(now)

    def _enter(self, phase: str, now: float) -> None:
        assert phase in _MOVES[self.phase], (self.phase, phase)
        self.phase, self._since, self._said = phase, now, now

    # -- who is there

    def _status(self, status: Status) -> None:
        if status.role == "edge":
            (self._edges.add if status.online else self._edges.discard)(status.node)
        elif status.role != "device":
            return
        elif status.online:
            self._samples[status.node] = status.samples
        elif self._samples.pop(status.node, None) is not None:
            self._journal.event("device_gone", device=status.node, round=self.round)

    def _wait(self, now: float) -> Iterator[Message | None]:
        rounds = self._config.rounds
        if len(self._samples) < rounds.min_devices:
            text = f"{len(self._samples)} of {rounds.min_devices} devices are here ({', '.join(sorted(self._samples))})"
            self._patience(now, f"round {self.round} cannot start: {text}")
            return
        edges = [edge for edge in self._config.overlays.edges if edge not in self._edges]
        assert self._since is not None
        if edges and self.round == 1 and now - self._since < self._config.overlays.start_s:
            self._patience(now, f"the first round waits for {', '.join(edges)}")
            return
        live = sorted(self._samples)
        count = min(rounds.per_round or len(live), len(live))
        rng = np.random.default_rng([rounds.seed, self.round])
        self._sampled = tuple(sorted(live[i] for i in rng.choice(len(live), count, replace=False)))
        self._heard, self._loss, self._sum = {}, 0.0, fedavg.init(self.weights)
        self._enter("collecting", now)
        yield from self.restore()
        # Only now: the devices train meanwhile.
        if self.round > 1:
            self._closed(self.round - 1)

    # -- a round

    def _update(self, update: Update) -> Iterator[Message | None]:
        try:
            self._accept(update)
        except (UpdateRefused, WireError) as error:
            self._journal.problem("updates.refused", f"{update.device}, round {update.round}: {error}")
            yield Refused(update.run, update.device, update.round, str(error)[:500])

    def _accept(self, update: Update) -> None:
        if update.run == self.run and update.round == self.round and update.device in self._heard:
            self._journal.count("updates.duplicate")
            return
        if update.run != self.run or update.round != self.round or self.phase != "collecting":
            self._journal.count("updates.late")
            raise UpdateRefused(
                f"round {update.round} of run {update.run} is closed; this is {self.round} of {self.run}"
            )
        if update.device not in self._sampled:
            raise UpdateRefused(f"{update.device} was not asked in round {update.round}")
        if update.loss is None:
            raise UpdateRefused("the training loss is not a number; is the learning rate too high?")
        weights = restore(update.weights, update.form, self.weights)
        self._sum = fedavg.add(self._sum, weights, update.samples)
        self._heard[update.device] = update.samples
        self._loss += update.loss * update.samples

    def _collect(self, now: float) -> Iterator[Message | None]:
        assert self._since is not None
        rounds = self._config.rounds
        missing = [name for name in self._sampled if name not in self._heard]
        enough = len(self._heard) >= rounds.quorum * len(self._sampled)
        late = now - self._since >= rounds.deadline_s
        absent = all(name not in self._samples for name in missing)
        if missing and not (enough and (late or absent)):
            if late:
                text = f"{len(self._heard)} of {len(self._sampled)} updates after {now - self._since:.0f} s"
                self._patience(
                    now, f"round {self.round} has no quorum: {text}; missing: {', '.join(missing)}"
                )
            return
        if missing:
            self._journal.event("left_out", round=self.round, devices=missing)
        self.weights = self._as_sent(fedavg.result(self._sum))
        self.trained += self._sum.samples * self._config.training.epochs
        self.updates += self._sum.updates
        self._record = {
            "updates": len(self._heard),
            "sampled": len(self._sampled),
            "loss": round(self._loss / self._sum.samples, 4),
            "seconds": round(now - self._since, 3),
        }
        if self.round < rounds.rounds:
            self.round += 1
            self._enter("waiting", now)
            yield from self._wait(now)
            return
        self._enter("overlays", now)
        yield from self.restore()
        self._closed(self.round)

    def _closed(self, closed: int) -> None:
        # The next round is open by now; the weights are still those that the closed one gave.
        accuracy = None
        if self._evaluate is not None and (closed % self._config.rounds.evaluate_every == 0):
            accuracy = round(self._evaluate(self.weights)[0], 4)
        self._journal.event(
            "round", round=closed, of=self._config.rounds.rounds, accuracy=accuracy, **self._record
        )
        text = "" if accuracy is None else f", accuracy {accuracy:.2%}"
        log.info("round %d/%d%s", closed, self._config.rounds.rounds, text)

    # -- overlays

    def _overlay(self, overlay: OverlayWeights) -> None:
        if overlay.run != self.run or overlay.edge not in self._config.overlays.edges:
            self._journal.problem(
                "overlays.refused", f"overlay of {overlay.edge}, run {overlay.run}: not expected here"
            )
            return
        self._answered.add(overlay.edge)
        if not overlay.steps:
            self._journal.problem(
                "overlays.untrained", f"{overlay.edge} has received no batch: its overlay is left out"
            )
            return
        self.overlays[overlay.edge] = overlay
        self._journal.event("overlay", edge=overlay.edge, steps=overlay.steps)

    def _gather(self, now: float) -> Iterator[Message | None]:
        assert self._since is not None
        missing = [edge for edge in self._config.overlays.edges if edge not in self._answered]
        if missing and now - self._since < self._config.overlays.wait_s:
            return
        if missing:
            self._journal.problem(
                "overlays.missing", f"no overlay from {', '.join(missing)}: going on without"
            )
        self._enter("done", now)
        yield from self.restore()

    def _patience(self, now: float, text: str) -> None:
        assert self._since is not None
        if now - self._since > self._config.rounds.give_up_s:
            raise QuorumError(text)
        if now - self._said > 10:
            self._said = now
            log.warning("%s; waiting", text)
