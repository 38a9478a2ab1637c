"""The edge: receives activation batches, answers with intervals; beside that, trains the overlay.

`handle` (receiving) and `work` (training) run on two threads and share only the cache, which waits for neither, and the
fields of the state, each written by one side. A new run (by the WAN) and a batch (by the LAN) take turns.
"""

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping

from torch import nn

from edge_app import batch_checks, ready
from edge_app.cache.replay_cache import ReplayCache
from edge_app.device_quota import DeviceQuota
from edge_app.intervals import scoring
from edge_app.intervals.controller import Controller, ControllerState
from edge_app.intervals.log_file import IntervalLog
from edge_app.overlay.batch_filter import BatchFilter
from edge_app.overlay.checkpoint import CheckpointFile, State
from edge_app.overlay.replay_training import ReplayTraining
from edge_app.overlay.trainer import Trainer
from edge_app.snapshot import NodeState, Snapshot
from emo.config import MAX_EPOCHS, EdgeConfig, Overlay
from emo.errors import BaseError, CacheError, ModelError, WireError
from emo.journal import Journal, log
from emo.models import split_network
from emo.runtime import agreement
from emo.runtime.runner import Node
from emo.runtime.trouble import Trouble
from emo.wire.compression import restore
from emo.wire.limits import Limits, of_batches, of_weights
from emo.wire.messages import (
    ActivationBatch,
    CannotTrain,
    Facts,
    GlobalHead,
    Interval,
    Message,
    OverlayWeights,
    RunState,
    Status,
    TapReport,
    Unfit,
    Weights,
)

_PATIENCE, _RETRY_S = 10, 1.0  # steps that may fail in a row, and the time between two of them
_RUNS = 16  # runs that are remembered as over
TrainerOf = Callable[[nn.Module, Overlay, str], Trainer]


class EdgeNode(Node):
    def __init__(
        self,
        config: EdgeConfig,
        cache: ReplayCache,
        journal: Journal,
        device: str = "cpu",
        interval_log: IntervalLog | None = None,
        checkpoint: CheckpointFile | None = None,
        trainer: TrainerOf = Trainer,
    ) -> None:
        """`device`: where the overlay trains ("cpu", "cuda"). `interval_log`, `checkpoint`: None in a simulation. `trainer`: a
        Trainer or what is one. Raises ModelError."""
        self._config, self._cache, self._journal, self._device = config, cache, journal, device
        self._shape = split_network.split_shape(config.model)
        self._controller, self._log = Controller(**config.controller.model_dump()), interval_log
        self._quota = DeviceQuota(config.cache.device_batches, journal)
        self._receiving = threading.Lock()

        def fresh() -> Trainer:
            return trainer(split_network.overlay(config.model, config.overlay.seed), config.overlay, device)

        self._head = split_network.network(config.model, seed=0).head
        self._heard: GlobalHead | None = None
        self._filter = BatchFilter(config.model.classes, journal)
        self._training = ReplayTraining(config.overlay, cache, journal, fresh, checkpoint, self._filter)
        self.trouble = Trouble(config.id, journal)
        self._facts: Facts = {}
        self._unable = ""
        self._failures, self._retry = 0, 0.0  # steps in a row that raised; when there may be another
        self._over: deque[str] = deque(maxlen=_RUNS)
        self._delivered: OverlayWeights | None = None
        self._logged = "", 0  # phase and round
        self._hold(NodeState(training=self._training.state))

    def _hold(self, state: NodeState) -> None:
        """Go on from `state`, whose `training` the training has already."""
        self._state = state
        self._controller.state, self._quota.state = state.controller, state.quota

    def hello(self, online: bool) -> Status:
        details = (self._facts, self._unable) if online else ({}, "")
        return Status(self._config.id, "edge", online, 0, *details)

    def prepare(self) -> None:
        """Before it connects: finds what `hello` tells, and whether the overlay can train at all, by a step of a second one, so
        that nothing changes here but `trouble`."""
        self._facts = agreement.facts(self._config.model, self._shape, overlay=self._training.weights())
        try:
            ready.step(self._config, self._device)
        except Exception as error:  # noqa: BLE001 - a user's network may raise anything
            self._unable = self.trouble.failed("a trial step of the overlay", error)

    def limits(self) -> Limits:
        """The largest messages that it takes."""
        samples = self._config.cache.batch_samples
        return {
            ActivationBatch: of_batches(ActivationBatch, samples, self._shape),
            GlobalHead: of_weights(GlobalHead, split_network.weights(self._head)),
        }

    def words(self) -> Mapping[str, str]:
        state = self._state
        if not state.run:
            doing = "waits for a run"
        elif self._delivered is not None:
            doing = "overlay sent"
        else:
            doing = "finishing its overlay" if state.finishing is not None else f"round {state.round} of {state.rounds}"
        return {"run": state.run, "doing": doing, "trouble": self.trouble.why}

    def restore(self) -> Iterator[Message | None]:
        """The overlay, if it was sent."""
        if self._delivered is not None:
            yield self._delivered

    # -- receiving

    def handle(self, message: Message, now: float) -> Iterator[Message | None]:
        """Raises WireError on a batch that does not belong here, CacheError when the disk fails."""
        answer: Message | None = None
        with self._receiving:
            if isinstance(message, RunState):
                answer = self._follow(message, now)
            elif isinstance(message, ActivationBatch):
                answer = self._receive(message, now)
            elif isinstance(message, TapReport):
                self._report(message, now)
            elif isinstance(message, Unfit):
                self.trouble.unfit(message)
            elif isinstance(message, GlobalHead):
                self._hear(message)
        if answer is not None:
            yield answer

    def _hear(self, message: GlobalHead) -> None:
        """Raises WireError on the head of another model."""
        self._heard = message  # perhaps sooner than of its run
        if message.run != self._state.run:
            return
        try:
            weights = restore(message.weights, message.form, split_network.weights(self._head))
            split_network.load(self._head, weights)
        except (ModelError, WireError) as error:
            raise WireError(f"the global model's head: {error}") from error
        self._filter.head = copy.deepcopy(self._head).to(self._device)  # whole, for the thread that trains

    def _report(self, report: TapReport, now: float) -> None:
        if report.run == self._state.run and report.device in self._config.devices:
            self._state.last = now
            most = self._state.quota.served[report.device] * self._controller.attempts
            batches = self._controller.batches(report.device)
            self._quota.report(report, min(most, batches * (self._state.round + 1) * MAX_EPOCHS))

    def _follow(self, told: RunState, now: float) -> OverlayWeights | None:
        """The overlay, where the cloud asks for it once more: by saying again that the run ends."""
        if told.run in self._over:
            self._journal.problem("runs.old", f"the cloud goes on with run {told.run}, which is over here")
            return None
        if told.run != self._state.run and told.phase != "done":
            self._begin(told)
        state = self._state
        if told.run == state.run:
            state.round, state.rounds = told.round, told.rounds
            progress = told.round / told.rounds if told.rounds else 0.0
            state.training.progress = max(state.training.progress, progress)
            self._log_phase(told)
        if told.run != state.run or told.phase != "finishing":
            return None
        if state.finishing is None:
            state.finishing = state.last = now
        return self._delivered

    def _begin(self, told: RunState) -> None:
        self._cache.begin(told.run)  # what it holds of another run came from another trunk
        rows = self._log.begin(told.run) if self._log else ()
        training = self._training.begin(told.run)
        self._filter.head = None
        if self._state.run:
            self._over.append(self._state.run)
        # After a restart in the middle of the run nobody repeats what was offered before: each batch on the
        # disk about once a round.
        missed = self._cache.stats()["entries"] * told.round
        controller = ControllerState.of(rows)
        self._hold(NodeState(run=told.run, missed=missed, controller=controller, training=training))
        self._delivered = None
        self._failures, self._retry = 0, 0.0
        self._journal.event("run", run=told.run)
        if self._heard is not None:
            self._hear(self._heard)

    def _log_phase(self, told: RunState) -> None:
        """One line a round."""
        before, self._logged = self._logged, (told.phase, told.round)
        if self._logged == before:
            return
        phases = {
            "finishing": "the rounds are over, the overlay trains to its end",
            "done": "the run is done",
        }
        text = phases.get(told.phase, f"round {told.round}/{told.rounds}")
        received, steps = self._state.received, self._training.steps
        log.info("%s: %s; %d batches so far, %d steps", self._config.id, text, received, steps)

    def _receive(self, batch: ActivationBatch, now: float) -> Interval | None:
        state = self._state
        labels = batch_checks.labels(batch, self._config, state.run, state.rounds)
        # The log remembers a version also when the cache has evicted it, and asks no disk.
        row = self._controller.row(batch.device, batch.batch)
        old = row is not None and row.version >= batch.version
        if not old and not self._quota.admits(batch):
            return None
        known = None if old else self._cache.get(batch.device, batch.batch)
        if old or (known is not None and known.version >= batch.version):
            self._journal.count("activations.duplicate")
        else:
            self._quota.serve(batch)
            cached = None if known is None else known.activations
            try:
                activations, encoded = batch_checks.activations(batch, self._shape, cached)
            except BaseError as error:
                self._journal.problem("activations.baseless", f"{batch.device}: {error}; it will send in full")
                return None
            state.received, state.last = state.received + 1, now
            state.newest = max(state.newest, batch.version)
            score, change = scoring.compare(self._config.controller.policy, cached, activations)
            try:
                self._cache.put(batch.device, batch.batch, batch.version, activations, labels, encoded)
            except CacheError as error:
                self._journal.problem("cache.unwritten", str(error))
                return None  # no interval: the device will offer it again
            self._journal.count("activations.stored")
            self._note(batch, score, change)
            row = self._controller.row(batch.device, batch.batch)
        # Of a doubled batch too: the answer may have been lost, or this edge stopped before it gave one.
        if row is None or row.version != batch.version:
            return None  # unknown to the device: it sends at the next attempt
        return Interval(batch.run, batch.edge, batch.device, batch.batch, batch.version, row.interval)

    def _note(self, batch: ActivationBatch, score: float, change: float) -> None:
        state = self._controller.state
        nan_scores, guarded = state.nan_scores, state.guarded
        self._controller.received(batch.device, batch.batch, score, change, batch.version)
        self._journal.count("controller.nan_scores", state.nan_scores - nan_scores)
        self._journal.count("controller.guarded", state.guarded - guarded)
        row = self._controller.row(batch.device, batch.batch)
        if self._log is not None and row is not None:
            self._log.save(row)

    def settle(self) -> None:
        """What was received is on the disk on return, as durably as the configuration has it; then the broker is told."""
        try:
            self._cache.flush()
        except CacheError as error:
            self._journal.problem("cache.unwritten", str(error))

    # -- training

    def work(self, now: float) -> Iterator[Message | None]:
        """One overlay step, if the budget and the cache have one; the overlay itself when the run has ended.

        Raises CacheError when the disk cannot be read."""
        attempted = max(self._quota.attempted, self._state.received, self._state.missed)
        if self._may_train(now) and self._training.within_budget(attempted) and not self._overdue(now):
            stop = self._config.overlay.budget == "time" and self._finished(now)
            try:
                stepped = not stop and self._training.step()
            except CacheError:
                raise
            except Exception as error:  # noqa: BLE001 - a user's network may raise anything
                yield self._failed(error, now)
                return
            if stepped:
                self._failures = 0
                self.trouble.over()
                yield None
                return
        if self._finished(now) and self._delivered is None:
            run, steps, sent = self._state.run, self._training.steps, self._quota.sent
            self._journal.event("overlay", steps=steps, attempted=attempted, sent=sent)
            log.info("%s: the overlay goes to the cloud, after %d steps", self._config.id, steps)
            self._delivered = OverlayWeights(run, self._config.id, steps, attempted, sent, self._training.weights())
            yield self._delivered

    def _may_train(self, now: float) -> bool:
        return not self._unable and self._failures < _PATIENCE and now >= self._retry

    def _failed(self, error: Exception, now: float) -> CannotTrain:
        self._journal.count("overlay.failed")
        self._failures, self._retry = self._failures + 1, now + _RETRY_S
        reason = self.trouble.failed("an overlay step", error)
        if self._failures == _PATIENCE:
            log.warning("%s: %d steps failed in a row: no more in this run", self._config.id, _PATIENCE)
        return CannotTrain(self._state.run, self._config.id, self._state.round, reason)

    def close(self) -> None:
        """Once nobody trains any more: no step is lost."""
        self._training.keep()

    def overlay(self) -> Weights:
        """The overlay as it is now: name -> array, copied."""
        return self._training.weights()

    def snapshot(self) -> Snapshot:
        """All that it knows, while nobody calls it; what the cache holds is on the disk. For a simulation."""
        return Snapshot(self._state, self._cache.state(), *self._training.arrays())

    def resume(self, snapshot: Snapshot) -> None:
        """Before its first message, over a cache with the same batches: the same bits from here on as the node that
        gave `snapshot`. Raises CacheError and ModelError where it is of another edge."""
        state = snapshot.node
        self._cache.resume(snapshot.sampler)
        self._training.resume(state.run, state.training, snapshot.now, snapshot.kept)
        self._hold(state)

    def like(self) -> State:
        """What a snapshot's arrays must be like."""
        return self._training.like()

    def gauges(self) -> dict[str, float]:
        """For metrics: what the cache holds; ages in rounds and trainings of its batches, by powers of two."""
        cache, newest = self._cache, self._state.newest
        gauges: dict[str, float] = {f"cache.{name}": value for name, value in cache.stats().items()}
        gauges |= {"overlay.step": self._training.steps, "devices.offered": self._quota.attempted}
        gauges |= {"devices.sent": self._quota.sent, "activations.received": self._state.received}
        if self._training.loss is not None:
            gauges["overlay.loss"] = self._training.loss
        gauges["overlay.distrusted"] = len(self._state.training.filter.distrusted)
        gauges |= {f"cache.age.{age}": count for age, count in cache.ages(newest).items()}
        return gauges | {f"cache.trained_times.{n}": count for n, count in cache.trained_counts().items()}

    def _finished(self, now: float) -> bool:
        state = self._state
        quiet = state.finishing is not None and now - state.last >= self._config.overlay.patience_s
        return quiet or self._overdue(now)

    def _overdue(self, now: float) -> bool:
        finishing = self._state.finishing
        return finishing is not None and now - finishing >= self._config.overlay.finish_s
