"""What a round's devices would send, trained together on a GPU: for the fleet, in place of one DeviceNode after another.

It does what device_app/node.py does with a global model, for all of them at once (vmap_sgd.py). Updates agree with
DeviceNode's within rounding; what the policy lets through follows from the same publisher.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from device_app.publisher import Publisher
from emo import seeds
from emo.data.batches import Batch, FixedBatches
from emo.models import split_network
from emo.wire.compression import restore, shrink
from emo.wire.messages import GlobalModel, Interval, Update, Weights
from testbed import node_configs
from testbed.fleet.messages import Offered, TrainDevice, Trained
from testbed.fleet.vmap_sgd import Stack, Step
from testbed.plan import Plan
from testbed.workers import packets
from testbed.workers.packets import Packet, Sender
from testbed.workers.shared_memory import SharedData


class GpuDevices:
    """`device`: torch's. It takes a float32 copy of the samples of every device that was ever asked, and per device
    of a round four times the network and what its forward pass keeps."""

    def __init__(self, plan: Plan, data: SharedData, device: str | torch.device) -> None:
        """Raises ModelError."""
        self._plan, self._data, self._device = plan, data, torch.device(device)
        self._dataset = data.dataset()
        net = node_configs.network(plan)
        self._like = split_network.weights(net)
        self._stack = Stack(net, device)
        self._held: dict[int, _Share] = {}

    def round(self, model: GlobalModel, sampled: Sequence[TrainDevice]) -> list[Trained]:
        """In the order of `sampled`. Raises CodecError or WireError on a state or packets that are damaged,
        ModelError on weights of another network."""
        start = restore(model.weights, model.form, self._like)
        self._stack.load(start, len(sampled))
        shares = [self._share(each.device) for each in sampled]
        taps = [_Tap(self._plan, each, model) for each in sampled]
        losses: list[list[float]] = [[] for _ in sampled]
        for epoch in range(model.training.epochs):
            version = model.round * model.training.epochs + epoch
            streams = [share.stream(model.round, epoch) for share in shares]
            seed = seeds.of(self._plan.seed, model.round, epoch)
            for step in self._stack.epoch(streams, model.training, seed):
                for place, loss in zip(step.places, step.losses.tolist(), strict=True):
                    losses[place].append(loss)
                _offer(step, taps, version, model.fresh)
        return [
            self._sent(model, each, place, losses[place], shares[place].samples, taps[place], start)
            for place, each in enumerate(sampled)
        ]

    def _sent(
        self,
        model: GlobalModel,
        sampled: TrainDevice,
        place: int,
        losses: list[float],
        samples: int,
        tap: "_Tap",
        start: Weights,
    ) -> Trained:
        loss = sum(losses) / len(losses)
        state, offered = tap.end(model.round, len(losses))
        update = Update(
            run=model.run,
            device=node_configs.device_id(self._plan, sampled.device),
            round=model.round,
            samples=samples,
            loss=loss if math.isfinite(loss) else None,
            weights=shrink(self._stack.weights(place), model.training.update, start),
            form=model.training.update,
        )
        return Trained(loss, samples * model.training.epochs, state, offered, tap.sender.encode(update))

    def _share(self, number: int) -> "_Share":
        if number not in self._held:
            batches = node_configs.batches(self._plan, self._dataset, self._data.rows(number))
            self._held[number] = _Share(batches, self._device)
        return self._held[number]


class _Share:
    """A device's fixed batches, in the memory of the GPU from their first use on."""

    def __init__(self, batches: FixedBatches, device: torch.device) -> None:
        self.samples = batches.samples
        self._batches, self._device = batches, device
        self._held: dict[int, Batch] = {}

    def stream(self, round: int, epoch: int) -> Iterator[Batch]:
        for j in self._batches.order(round, epoch):
            if j not in self._held:
                _, inputs, labels = self._batches.batch(j)
                self._held[j] = Batch(j, inputs.to(self._device), labels.to(self._device))
            yield self._held[j]


class _Tap:
    """A device's offers in one round, as packets. Under another method than emo it has none."""

    def __init__(self, plan: Plan, sampled: TrainDevice, model: GlobalModel) -> None:
        self.sender = Sender(model.round)
        self._waves: list[list[Packet]] = []
        self._offers: Publisher | None = None
        config = node_configs.device(plan, sampled.device)
        if config.edge is None or not config.tap.enabled:
            return
        self._offers = Publisher(config.id, config.edge, config.tap.codec)
        if sampled.state:
            self._offers.resume(sampled.state)
        for message in packets.decode(sampled.intervals):
            if isinstance(message, Interval):
                self._offers.answer(message)
        if self._offers.run != model.run:
            self._offers.begin(model.run)

    @property
    def wanted(self) -> bool:
        return self._offers is not None

    def offer(self, batch: Batch, activations: np.ndarray, version: int, fresh: bool) -> None:
        assert self._offers is not None
        labels = batch.labels.cpu().numpy().astype("<i4")
        message = self._offers.offer(batch.id, version, activations.copy(), labels, fresh)
        self._waves.append([] if message is None else self.sender.encode(message))

    def end(self, number: int, batches: int) -> tuple[bytes, Offered]:
        """What is kept, and what was offered; without a tap as many empty waves as there were batches."""
        if self._offers is None:
            return b"", Offered([[] for _ in range(batches)], [])
        report = self.sender.encode(self._offers.report(number))
        return self._offers.state(), Offered(self._waves, report)


def _offer(step: Step, taps: Sequence[_Tap], version: int, fresh: bool) -> None:
    if not taps[0].wanted:
        return
    activations = step.activations.cpu().numpy()
    for row, (place, batch) in enumerate(zip(step.places, step.batches, strict=True)):
        taps[place].offer(batch, activations[row], version, fresh)
