"""One device's round of split federated learning: the trunk on the device, a copy of the rest on a server.

SplitFed V1 (Thapa et al. 2022, arXiv 2004.12088, algorithms 1, 2). Every batch's activations go up and its gradient comes down as
frames, in fp32, and what trains the other half are the values that were decoded. So the two halves take, to the bit, the steps of
the network that they make together.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from emo import seeds
from emo.config import Training
from emo.data.batches import FixedBatches
from emo.errors import ModelError
from emo.local_sgd import Sgd
from emo.models import split_network
from emo.models.split_network import SplitNetwork
from emo.wire.codec import Packed
from emo.wire.compression import Weights, restore, shrink
from emo.wire.messages import ActivationBatch, GlobalModel, Update
from testbed.splitfed.wire import Wire

RUN = "split"
_LIMIT = 64 << 20  # bytes of a decoded array, as of its message


def half(weights: Weights, name: str) -> dict[str, np.ndarray]:
    """Those of `name`, trunk or head, out of a SplitNetwork's."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): array for key, array in weights.items() if key.startswith(prefix)}


def joined(trunk: Weights, head: Weights) -> dict[str, np.ndarray]:
    """What `half` has taken apart."""
    halves = {"trunk": trunk, "head": head}
    return {f"{name}.{key}": array for name, part in halves.items() for key, array in part.items()}


@dataclass(frozen=True)
class Trained:
    """After a round. `update`: both halves joined, the device's as the cloud reads it, the server's as it is there.
    `loss`: mean of the batches, perhaps not finite; `samples`: passed through training. `up`, `down`: bytes that crossed, by the message's class; a gradient is an ActivationBatch without labels."""

    update: Update
    loss: float
    batches: int
    samples: int
    up: dict[str, int]
    down: dict[str, int]


class Halves:
    """Trains one device after another: nothing of one is left when the next begins."""

    def __init__(self, net: SplitNetwork, device: str | torch.device = "cpu") -> None:
        """`net` is the caller's no longer. Raises ModelError where there is nothing to train before the split."""
        if not any(True for _ in net.trunk.parameters()):
            raise ModelError("the trunk has no weights: split learning needs layers that train before the split")
        self._trunk, self._head = net.trunk.to(device).train(), net.head.to(device).train()
        self._device = torch.device(device)

    def round(self, start: GlobalModel, batches: FixedBatches, name: str, server: str) -> Trained:
        """Round `start.round` of device `name`, whose copy is at `server`; both halves begin as in `start`.

        Raises ModelError or CodecError on weights of another network.
        """
        up, down = Wire(), Wire()
        model = down.carry(replace(start, weights=half(start.weights, "trunk")))
        begin = restore(model.weights, model.form, split_network.weights(self._trunk))
        split_network.load(self._trunk, begin)
        split_network.load(self._head, half(start.weights, "head"))
        training, losses, draws = model.training, list[float](), seeds.Draws(self._device)
        for epoch in range(training.epochs):
            version = model.round * training.epochs + epoch
            on_device, on_server = (_optimizer(each, training) for each in (self._trunk, self._head))
            seed = seeds.of(batches.seed, model.round, epoch, name)  # as the network in one piece
            for step, j in enumerate(batches.order(model.round, epoch)):
                batch = batches.batch(j)
                with draws.seeded(seeds.of(seed, step)):
                    activations = self._trunk(batch.inputs.to(self._device))
                    labels = batch.labels.numpy().astype("<i4")
                    packed = Packed(activations.detach().cpu().numpy())
                    sent = ActivationBatch(model.run, server, name, j, version, packed, labels)
                    answer, loss = self._serve(up.carry(sent), on_server)
                    gradient = self._tensor(down.carry(answer))
                    on_device.zero_grad()
                    activations.backward(gradient)
                    on_device.step()
                losses.append(loss)
        loss = sum(losses) / len(losses)
        update = Update(
            run=model.run,
            device=name,
            round=model.round,
            samples=batches.samples,
            loss=loss if math.isfinite(loss) else None,
            weights=shrink(split_network.weights(self._trunk), training.update, begin),
            form=training.update,
        )
        arrived = up.carry(update)
        trunk = restore(arrived.weights, arrived.form, begin)
        both = replace(arrived, weights=joined(trunk, split_network.weights(self._head)), form="fp32")
        samples = training.epochs * batches.samples
        return Trained(both, loss, len(losses), samples, dict(up.bytes), dict(down.bytes))

    def _serve(self, sent: ActivationBatch, optimizer: Sgd) -> tuple[ActivationBatch, float]:
        """The server's step on one batch: the gradient for the device, and the loss before the step."""
        activations = self._tensor(sent).requires_grad_()
        labels = torch.tensor(sent.labels, dtype=torch.int64, device=self._device)
        optimizer.zero_grad()
        loss = cross_entropy(self._head(activations.clone()), labels)  # a head may work in place
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward() untyped
        optimizer.step()
        assert activations.grad is not None
        gradient = Packed(activations.grad.cpu().numpy())
        answer = replace(sent, activations=gradient, labels=np.empty(0, "<i4"))
        return answer, loss.item()

    def _tensor(self, message: ActivationBatch) -> torch.Tensor:
        return torch.tensor(message.activations.array(_LIMIT), device=self._device)


def _optimizer(part: nn.Module, training: Training) -> Sgd:
    # A new one each epoch, as in emo/local_sgd.py: momentum starts from zero.
    return Sgd(part.parameters(), training.lr, training.momentum)
