"""The edge: receives activation batches, answers with intervals; beside that, trains the overlay.

Knows who may send what, and when the overlay is done. Opens no socket, reads no clock. `handle` (receiving)
and `work` (training) run on two threads and share only the cache, which waits for neither, and the
counters below, each written by one side. A new run (by the WAN) and a batch (by the LAN) take turns.
"""

import copy
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
from torch import nn

from edge_app import ready
from edge_app.cache.replay_cache import ReplayCache
from edge_app.device_quota import Guard
from edge_app.intervals import scoring
from edge_app.intervals.controller import Controller
from edge_app.intervals.log_file import TableFile
from edge_app.overlay.batch_filter import Judge
from edge_app.overlay.checkpoint import CheckpointFile, State
from edge_app.overlay.replay_training import Training
from edge_app.overlay.trainer import Trainer
from edge_app.snapshot import NodeState, Snapshot, log_of
from emo.config import MAX_EPOCHS, EdgeConfig, Overlay
from emo.errors import BaseError, CacheError, ModelError, WireError
from emo.journal import Journal, log
from emo.models import split_network
from emo.runtime import agreement
from emo.runtime.runner import Node
from emo.runtime.trouble import Trouble
from emo.wire import codec
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
_LARGE = 1e15  # of their squares float32 can still add up a few million
TrainerOf = Callable[[nn.Module, Overlay, str], Trainer]


class EdgeNode(Node):
    def __init__(
        self,
        config: EdgeConfig,
        cache: ReplayCache,
        journal: Journal,
        device: str = "cpu",
        table: TableFile | None = None,
        checkpoint: CheckpointFile | None = None,
        trainer: TrainerOf = Trainer,
    ) -> None:
        """`device`: where the overlay trains ("cpu", "cuda"). `table`, `checkpoint`: where the controller's log and
        the overlay are kept, None in a simulation. `trainer`: a Trainer or what is one. Raises ModelError."""
        self._config, self._cache, self._journal = config, cache, journal
        self._shape = split_network.split_shape(config.model)
        self._controller, self._table = Controller(**config.controller.model_dump()), table
        self._receiving = threading.Lock()

        def fresh() -> Trainer:
            return trainer(split_network.overlay(config.model, config.overlay.seed), config.overlay, device)

        self._head, self._device = split_network.network(config.model, seed=0).head, device
        self._heard: GlobalHead | None = None
        self._judge = Judge(config.model.classes, journal)
        self._training = Training(config.overlay, cache, journal, fresh, checkpoint, self._judge)
        self._run, self._last = "", 0.0
        self.trouble = Trouble(config.id, journal)
        self._facts: Facts = {}
        self._unable = ""
        self._failures, self._retry = 0, 0.0  # steps in a row that raised; when there may be another
        self._newest = self._round = self._rounds = self._received = self._missed = 0
        self._before = Counter[str]()  # device -> the most that it can have offered before this process
        self._guard = Guard(config.cache.device_batches, journal)
        self._finishing: float | None = None
        self._delivered: OverlayWeights | None = None
        self._told = "", 0

    def hello(self, online: bool) -> Status:
        told = (self._facts, self._unable) if online else ({}, "")
        return Status(self._config.id, "edge", online, 0, *told)

    def prepare(self) -> None:
        """Before it connects: what `hello` says of this node, and whether the overlay can train at all: a step of another of its
        kind, so that nothing changes here but `trouble`."""
        self._facts = agreement.facts(self._config.model, self._shape, overlay=self._training.weights())
        try:
            ready.step(self._config, self._device)
        except Exception as error:  # noqa: BLE001 - a user's network may raise anything
            self._unable = self.trouble.failed("a trial step of the overlay", error)

    def limits(self) -> Limits:
        """How large a message may be that it takes."""
        samples = self._config.cache.batch_samples
        return {
            ActivationBatch: of_batches(ActivationBatch, samples, self._shape),
            GlobalHead: of_weights(GlobalHead, split_network.weights(self._head)),
        }

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
                answer = self._state(message, now)
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
        if message.run != self._run:
            return
        try:
            weights = restore(message.weights, message.form, split_network.weights(self._head))
            split_network.load(self._head, weights)
        except (ModelError, WireError) as error:
            raise WireError(f"the global model's head: {error}") from error
        self._judge.head = copy.deepcopy(self._head).to(self._device)  # whole, for the thread that trains

    def _report(self, report: TapReport, now: float) -> None:
        if report.run == self._run and report.device in self._config.devices:
            self._last = now
            # Of what came before a restart only the number of different batches is known.
            most = self._before[report.device] + self._guard.served[report.device] * self._controller.attempts
            batches = self._controller.batches[report.device]
            self._guard.report(report, min(most, batches * (self._round + 1) * MAX_EPOCHS))

    def _state(self, state: RunState, now: float) -> OverlayWeights | None:
        """What the cloud asks for once more, by saying again that the run ends."""
        if self._guard.left(state.run):
            self._journal.problem("runs.old", f"the cloud goes on with run {state.run}, which is over here")
            return None
        if state.run != self._run and state.phase != "done":
            self._cache.begin(state.run)  # what it holds of another run came from another trunk
            self._controller.reset(self._table.begin(state.run) if self._table else ())
            self._training.begin(state.run)
            self._guard.begin(self._run)
            self._judge.head = None
            self._received = 0
            # After a restart in the middle of the run nobody repeats what was offered before: each batch on the
            # disk about once a round.
            self._missed = self._cache.stats()["entries"] * state.round
            self._finishing, self._delivered, self._run = None, None, state.run
            self._failures, self._retry = 0, 0.0
            self._journal.event("run", run=state.run)
            if self._heard is not None:
                self._hear(self._heard)
        if state.run == self._run:
            self._round, self._rounds = state.round, state.rounds
            progress = state.round / state.rounds if state.rounds else 0.0
            self._training.progress = max(self._training.progress, progress)
            self._tell(state)
        if state.run != self._run or state.phase != "finishing":
            return None
        if self._finishing is None:
            self._finishing = self._last = now
        return self._delivered

    def _tell(self, state: RunState) -> None:
        """One line a round."""
        told, self._told = self._told, (state.phase, state.round)
        if self._told == told:
            return
        what = {"finishing": "the rounds are over, the overlay trains to its end", "done": "the run is done"}
        text = what.get(state.phase, f"round {state.round}/{state.rounds}")
        log.info(
            "%s: %s; %d batches so far, %d steps", self._config.id, text, self._received, self._training.steps
        )

    def _receive(self, batch: ActivationBatch, now: float) -> Interval | None:
        labels = self._labels(batch)
        # The log remembers a version also when the cache has evicted it, and asks no disk.
        seen = self._controller.row(batch.device, batch.batch)
        old = seen is not None and seen.version >= batch.version
        if not old and not self._guard.admits(batch):
            return None
        known = None if old else self._cache.get(batch.device, batch.batch)
        if old or (known is not None and known.version >= batch.version):
            self._journal.count("activations.duplicate")
        else:
            self._guard.serve(batch)
            cached = None if known is None else known.activations
            try:
                activations, encoded = self._activations(batch, cached)
            except BaseError as error:
                self._journal.problem(
                    "activations.baseless", f"{batch.device}: {error}; it will send in full"
                )
                return None
            self._received, self._last = self._received + 1, now
            self._newest = max(self._newest, batch.version)
            score, change = scoring.compare(self._config.controller.policy, cached, activations)
            try:
                self._cache.put(batch.device, batch.batch, batch.version, activations, labels, encoded)
            except CacheError as error:
                self._journal.problem("cache.unwritten", str(error))
                return None  # no interval: the device will offer it again
            self._journal.count("activations.stored")
            self._note(batch, score, change)
        # Of a doubled batch too: the answer may have been lost, or this edge stopped before it gave one.
        row = self._controller.row(batch.device, batch.batch)
        if row is None or row.version != batch.version:
            return None  # unknown to the device: it sends at the next attempt
        return Interval(batch.run, batch.edge, batch.device, batch.batch, batch.version, row.interval)

    def _note(self, batch: ActivationBatch, score: float, change: float) -> None:
        controller = self._controller
        before = controller.nan_scores, controller.guarded
        controller.received(batch.device, batch.batch, score, change, batch.version)
        self._journal.count("controller.nan_scores", controller.nan_scores - before[0])
        self._journal.count("controller.guarded", controller.guarded - before[1])
        row = controller.row(batch.device, batch.batch)
        if self._table is not None and row is not None:
            self._table.save(row)

    def _labels(self, batch: ActivationBatch) -> np.ndarray:
        """int64 (N,), once it is clear that the batch belongs here."""
        where = _where(batch)
        if batch.device not in self._config.devices:
            raise WireError(f"{where}: this edge's devices are {', '.join(self._config.devices[:5])} ...")
        if batch.run != self._run:
            raise WireError(f"{where}: of run {batch.run}, the cloud's is {self._run or 'not known yet'}")
        if batch.version >= (self._rounds + 1) * MAX_EPOCHS:
            raise WireError(f"{where}: version {batch.version} cannot be, in {self._rounds} rounds")
        labels = batch.labels.astype(np.int64)
        most = self._config.cache.batch_samples
        if not 1 <= len(labels) <= most:
            raise WireError(f"{where}: {len(labels)} samples; 1 to {most} are taken (cache.batch_samples)")
        if labels.min() < 0 or labels.max() >= self._config.model.classes:
            raise WireError(f"{where}: labels must be from 0 to {self._config.model.classes - 1}")
        return labels

    def _activations(self, batch: ActivationBatch, cached: np.ndarray | None) -> tuple[np.ndarray, bytes]:
        """Float32 (N, C, ...), and as a full frame; `cached` is what a delta is made against."""
        shape = (len(batch.labels), *self._shape)
        activations, encoded = codec.whole(batch.activations.data(), 4 * math.prod(shape), cached)
        if activations.shape != shape:
            raise WireError(
                f"{_where(batch)}: activations {list(activations.shape)}, expected {list(shape)}; "
                "do device and edge have the same `model`?"
            )
        if not np.isfinite(activations).all():
            raise WireError(f"{_where(batch)}: activations hold NaN or infinity")
        if np.abs(activations).max() >= _LARGE:
            raise WireError(
                f"{_where(batch)}: activations of {_LARGE:g} and more are too large to compute with"
            )
        return activations, encoded

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
        attempted = max(self._guard.attempted, self._received, self._missed)
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
            steps, sent = self._training.steps, self._guard.sent
            self._journal.event("overlay", steps=steps, attempted=attempted, sent=sent)
            log.info("%s: the overlay goes to the cloud, after %d steps", self._config.id, steps)
            self._delivered = OverlayWeights(
                self._run, self._config.id, steps, attempted, sent, self._training.weights()
            )
            yield self._delivered

    def _may_train(self, now: float) -> bool:
        return not self._unable and self._failures < _PATIENCE and now >= self._retry

    def _failed(self, error: Exception, now: float) -> CannotTrain:
        self._journal.count("overlay.failed")
        self._failures, self._retry = self._failures + 1, now + _RETRY_S
        reason = self.trouble.failed("an overlay step", error)
        if self._failures == _PATIENCE:
            log.warning("%s: %d steps failed in a row: no more in this run", self._config.id, _PATIENCE)
        return CannotTrain(self._run, self._config.id, self._round, reason)

    def close(self) -> None:
        """Once nobody trains any more: no step is lost."""
        self._training.keep()

    def overlay(self) -> Weights:
        """The overlay as it is now: name -> array, copied."""
        return self._training.weights()

    def snapshot(self) -> Snapshot:
        """All that it knows, while nobody calls it; what the cache holds is on the disk. For a simulation."""
        training, now, kept = self._training.state()
        node = NodeState(
            run=self._run,
            round=self._round,
            rounds=self._rounds,
            newest=self._newest,
            received=self._received,
            missed=self._missed,
            last=self._last,
            finishing=self._finishing,
            reports=self._guard.reports,
            served=dict(self._guard.served),
            sizes=self._guard.sizes,
            log=log_of(self._controller.table()),
            nan_scores=self._controller.nan_scores,
            guarded=self._controller.guarded,
            sampler=self._cache.state(),
            training=training,
        )
        return Snapshot(node, now, kept)

    def resume(self, snapshot: Snapshot) -> None:
        """Before its first message, over a cache with the same batches: the same bits from here on as the node that
        gave `snapshot`. Raises CacheError and ModelError where it is of another edge."""
        node = snapshot.node
        self._cache.resume(node.sampler)
        self._training.resume(node.run, node.training, snapshot.now, snapshot.kept)
        self._controller.reset(node.rows())
        self._controller.nan_scores, self._controller.guarded = node.nan_scores, node.guarded
        self._run, self._round, self._rounds, self._newest = node.run, node.round, node.rounds, node.newest
        self._received, self._missed, self._last = node.received, node.missed, node.last
        self._guard.resume(node.served, node.sizes, node.reports)
        self._finishing = node.finishing

    def like(self) -> State:
        """What a snapshot's arrays must be like."""
        return self._training.like()

    def gauges(self) -> dict[str, int]:
        """For metrics: what the cache holds; ages in rounds and trainings of its batches, by powers of two."""
        found = {f"cache.{name}": value for name, value in self._cache.stats().items()}
        found["overlay.distrusted"] = len(self._judge.distrusted)
        found |= {f"cache.age.{age}": count for age, count in self._cache.ages(self._newest).items()}
        return found | {f"cache.trained_times.{n}": each for n, each in self._cache.trained_counts().items()}

    def _finished(self, now: float) -> bool:
        quiet = self._finishing is not None and now - self._last >= self._config.overlay.patience_s
        return quiet or self._overdue(now)

    def _overdue(self, now: float) -> bool:
        return self._finishing is not None and now - self._finishing >= self._config.overlay.finish_s


def _where(batch: ActivationBatch) -> str:
    return f"batch {batch.batch} of {batch.device}"
