"""The device: global model in, local epochs, model update out; beside it, the activations that the policy allows.

The FL path (`_round`) yields the same weights whether the tap is there or not.
"""

import math
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing

import numpy as np
import torch

from device_app.publisher import Publisher
from device_app.tap import Tap
from emo import seeds
from emo.config import DeviceConfig, Training
from emo.data.batches import Batch, FixedBatches
from emo.data.dataset import Dataset
from emo.data.partition import share
from emo.data.registry import must_fit
from emo.journal import Journal, log
from emo.local_sgd import train
from emo.models import split_network
from emo.models.split_network import SplitNetwork
from emo.runtime import agreement
from emo.runtime.runner import Node
from emo.runtime.trouble import Trouble
from emo.wire.compression import digest, restore, shrink
from emo.wire.limits import Limits, of_weights
from emo.wire.messages import (
    ActivationBatch,
    CannotTrain,
    Facts,
    GlobalModel,
    Interval,
    Message,
    Refused,
    Status,
    Unfit,
    Update,
)

_RUNS = 16  # runs that are remembered as over
_SIGNS = 64  # of Report.intervals


class DeviceNode(Node):
    """A broker that has forgotten everything is told nothing: the global model comes again, and is answered again."""

    def __init__(
        self,
        config: DeviceConfig,
        data: Dataset,
        journal: Journal,
        net: SplitNetwork | None = None,
        batches: FixedBatches | None = None,
    ) -> None:
        """`data`: the training set that `config.partition` takes this device's share of. `net`: to train in place of
        one of its own, which `config.model` names; its weights are taken from the global model. `batches`: in place
        of that share's: so that one process may run many devices in turn, each until its `close`.

        Raises ModelError, PartitionError, or DataError where the data does not fit the model.
        """
        self.trouble = Trouble(config.id, journal)
        self._config, self._journal, self._data = config, journal, data
        self._facts: Facts = {}
        self._unable = ""
        must_fit(data, config.model)
        if batches is None:
            indices = share(data.labels, config.partition) if config.partition else np.arange(len(data.labels))
            batches = FixedBatches(data, indices, config.batch_size, config.data.seed)
        self._batches = batches
        self._net = split_network.network(config.model, seed=0) if net is None else net
        self._run = ""
        self._over: deque[str] = deque(maxlen=_RUNS)
        self._ended = ""
        self._update: Update | None = None
        self._doing = "waits for a round"
        self._trained: tuple[int, float] | None = None  # round and loss of the last one
        self._base = ""  # digest of the global model that it was trained from
        self._offered: list[ActivationBatch] = []
        self._version, self._fresh = 0, False
        self._publisher: Publisher | None = None
        self._tap: Tap | None = None
        if config.edge is not None and config.tap.enabled:
            self._publisher = Publisher(config.id, config.edge, config.tap.codec)
            self._tap = Tap(self._net.trunk, self._offer)

    def hello(self, online: bool) -> Status:
        details = (self._facts, self._unable) if online else ({}, "")
        return Status(self._config.id, "device", online, self._batches.samples, *details)

    def words(self) -> Mapping[str, str]:
        words = {"run": self._run, "doing": self._doing, "trouble": self.trouble.why}
        if self._publisher is not None:
            words |= {"edge": self._config.edge or "", "intervals": self._publisher.signs(_SIGNS)}
        return words

    def gauges(self) -> dict[str, float]:
        """For metrics and reports."""
        gauges: dict[str, float] = {"train.samples": self._batches.samples}
        if self._trained is not None and math.isfinite(self._trained[1]):
            gauges["train.round"], gauges["train.loss"] = self._trained
        return gauges | (self._publisher.figures() if self._publisher is not None else {})

    def prepare(self) -> None:
        """Before it connects: finds what `hello` tells, and whether it can train at all, by a step of a second node on its smallest
        batch, so that nothing changes here but `trouble`."""
        net, rows = split_network.network(self._config.model, seed=0), self._batches.rows(-1)
        try:
            weights = split_network.weights(net)
            split = split_network.split_shape(self._config.model)
            self._facts = agreement.facts(self._config.model, split, self._data, network=weights)
            model = GlobalModel("trial", 1, (self._config.id,), Training(), weights)
            batches = FixedBatches(self._data, rows, len(rows), 0)
            trial = DeviceNode(self._config, self._data, Journal(), net, batches)
            with closing(trial):
                if trial._publisher is not None:
                    trial._publisher.begin(model.run)
                deque(trial._epochs(model), maxlen=0)
            split_network.weights(net)
        except Exception as error:  # noqa: BLE001 - a user's network may raise anything
            of = f"{len(rows)} of {self._batches.samples} samples, batch_size {self._config.batch_size}"
            self._unable = self.trouble.failed(f"a trial step on its smallest batch ({of})", error)

    def limits(self) -> Limits:
        """The largest messages that it takes."""
        return {GlobalModel: of_weights(GlobalModel, split_network.weights(self._net))}

    def handle(self, message: Message, now: float) -> Iterator[Message | None]:
        """May be called by two threads: intervals come while the model trains."""
        del now
        if isinstance(message, GlobalModel):
            try:
                yield from self._round(message)
            except Exception as error:  # noqa: BLE001 - a user's network may raise anything
                self._offered = []
                why = self.trouble.failed(f"round {message.round}", error)
                yield CannotTrain(message.run, self._config.id, message.round, why)
        elif isinstance(message, Interval) and self._publisher is not None:
            self._publisher.answer(message)
        elif isinstance(message, Refused):
            self._journal.problem(
                "updates.refused",
                f"{message.device}: the cloud refused round {message.round}: {message.reason}",
            )
            self._journal.event("refused", run=message.run, round=message.round, reason=message.reason)
        elif isinstance(message, Unfit):
            self.trouble.unfit(message)

    def state(self) -> bytes:
        """What the next round depends on, once this one's messages are encoded; empty without a tap."""
        return b"" if self._publisher is None else self._publisher.state()

    def resume(self, state: bytes) -> None:
        """In another node of the same device: go on after what `state` gave. Raises as Publisher.resume."""
        if self._publisher is not None:
            self._publisher.resume(state)
            self._run = self._publisher.run

    def close(self) -> None:
        """The network is no longer watched."""
        if self._tap is not None:
            self._tap.close()

    def _round(self, model: GlobalModel) -> Iterator[Message | None]:
        if model.run in self._over:
            self._journal.count("globals.old")  # a broker that came back with what it retained long ago
            return
        if model.run != self._run:
            self._over.append(self._run)
            self._run, self._update = model.run, None
            self._journal.event("joined", device=self._config.id, run=model.run)
            log.info("%s: run %s", self._config.id, model.run)
            if self._publisher is not None:
                self._publisher.begin(model.run)
        if not model.devices and self._ended != model.run:
            self._ended = model.run
            log.info("%s: run %s has no more rounds for devices", self._config.id, model.run)
        if self._config.id not in model.devices:
            return
        base = digest(model.weights)
        if self._update is not None and (self._update.round, self._base) == (model.round, base):
            yield self._update  # delivered twice, or the cloud came back: the same answer
            return
        start = restore(model.weights, model.form, split_network.weights(self._net))
        split_network.load(self._net, start)
        self._doing = f"trains round {model.round}"
        try:
            loss = yield from self._epochs(model)
        finally:
            self._doing = "waits for a round"
        self._trained = model.round, loss
        trained, self._base = split_network.weights(self._net), base
        details = {"base": base, "digest": digest(trained), "loss": loss}
        log.info("%s: round %d trained, loss %.3f", self._config.id, model.round, loss)
        self._journal.event("trained", device=self._config.id, run=model.run, round=model.round, **details)
        self._update = Update(
            run=model.run,
            device=self._config.id,
            round=model.round,
            samples=self._batches.samples,
            loss=loss if math.isfinite(loss) else None,
            weights=shrink(trained, model.training.update, start),
            form=model.training.update,
        )
        self.trouble.over()
        yield self._update

    def _epochs(self, model: GlobalModel) -> Generator[Message | None, None, float]:
        """All of a round's training, from the weights that the network has; returns its mean loss."""
        self._fresh = model.fresh
        losses: list[float] = []
        for epoch in range(model.training.epochs):
            self._version = model.round * model.training.epochs + epoch
            stream = (self._batches.batch(j) for j in self._batches.order(model.round, epoch))
            seed = seeds.of(self._batches.seed, model.round, epoch, self._config.id)
            for loss in train(self._net, self._watched(stream), model.training, seed):
                losses.append(loss)
                yield from self._offered or (None,)
                self._offered = []
        if self._publisher is not None:  # before the update: the last round's closes the run
            yield self._publisher.report(model.round)
        return sum(losses) / len(losses)

    def _watched(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        return stream if self._tap is None else self._tap.watch(stream)

    def _offer(self, batch: int, activations: torch.Tensor, labels: torch.Tensor) -> None:
        assert self._publisher is not None
        rows = activations.numpy().copy(), labels.numpy().astype("<i4")
        message = self._publisher.offer(batch, self._version, *rows, self._fresh)
        if message is not None:
            self._offered.append(message)
