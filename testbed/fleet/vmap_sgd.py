"""Trains the devices of a round together: weights stacked along a first axis, one kernel where there were many.

On a GPU a step at batch 16 takes as long as its kernels take to start, so twenty devices one after another leave it
idle. Here torch.func.vmap runs the network over the axis D of devices: convolutions become grouped, linear layers
batched products. SGD is that of emo/local_sgd.py, but sums are added up in another order, so the weights agree within rounding
only. Devices whose batches have the same size go through a step together, the others after them: nothing is padded,
and batch norm sees what it would see alone.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

from emo import seeds
from emo.config import Training
from emo.data.batches import Batch
from emo.errors import ModelError
from emo.models import split_network
from emo.models.split_network import SplitNetwork
from emo.wire.messages import Weights

Tensors = dict[str, torch.Tensor]


class Step(NamedTuple):
    """One step of some devices. `places`: in the stack; `batches`: one each, all of n samples; `losses`: (D,), taken
    before the step; `activations`: (D, n, *split), what the trunk gave in training, detached."""

    places: list[int]
    batches: list[Batch]
    losses: torch.Tensor
    activations: torch.Tensor


class Stack:
    """Copies of one network, on one torch device."""

    def __init__(self, net: SplitNetwork, device: str | torch.device = "cpu") -> None:
        """`net` is moved to `device`, and is no longer the caller's. Raises ModelError where parts of it share
        their weights: they cannot be told apart in a stack."""
        self._net = net.to(device).train()
        self._count, self._device = 0, torch.device(device)
        self._names = list(net.state_dict())
        known = dict(net.named_parameters()) | dict(net.named_buffers())
        if not set(self._names) <= known.keys():
            shared = ", ".join(sorted(set(self._names) - known.keys()))
            raise ModelError(f"devices cannot be trained together: {shared} share the weights of another layer")
        self._values: Tensors = {}
        self._buffers: Tensors = {}

    def load(self, weights: Weights, count: int) -> None:
        """`count` copies, all with these weights. Raises ModelError, as `models.load`."""
        split_network.load(self._net, weights)
        self._count = count
        trained = {name for name, value in self._net.named_parameters() if value.requires_grad}
        known = dict(self._net.named_parameters()) | dict(self._net.named_buffers())
        self._values = {name: self._stacked(known[name]) for name in known if name in trained}
        self._buffers = {name: self._stacked(known[name]) for name in known if name not in trained}

    def epoch(self, streams: Sequence[Iterable[Batch]], settings: Training, seed: int = 0) -> Iterator[Step]:
        """Train copy d on `streams[d]`, as emo.local_sgd.train does: momentum starts from zero, a batch is taken when
        its step is due. A copy whose stream has ended stays as it is. The caller judges the losses. `seed`: of what
        the copies draw, each its own; not what each would draw alone."""
        assert len(streams) == self._count
        sources = [iter(stream) for stream in streams]
        moved = {name: torch.zeros_like(value) for name, value in self._values.items()} if settings.momentum else {}
        draws = seeds.Draws(self._device)
        for number in itertools.count():
            groups: dict[tuple[int, ...], list[tuple[int, Batch]]] = {}
            for place, source in enumerate(sources):
                batch = next(source, None)
                if batch is not None:
                    groups.setdefault(tuple(batch.inputs.shape), []).append((place, batch))
            if not groups:
                return
            for group in groups.values():
                places, batches = [place for place, _ in group], [batch for _, batch in group]
                with draws.seeded(seeds.of(seed, number, *places)):
                    done = self._step(places, batches, moved, settings)
                yield Step(places, batches, *done)

    def weights(self, place: int) -> dict[str, np.ndarray]:
        """Of one copy, as `models.weights` gives them."""
        both = self._values | self._buffers
        return {name: np.array(both[name][place].detach().cpu().numpy()) for name in self._names}

    def _stacked(self, value: torch.Tensor) -> torch.Tensor:
        return value.detach().expand(self._count, *value.shape).clone()

    def _step(
        self, places: list[int], batches: list[Batch], moved: Tensors, settings: Training
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = torch.stack([batch.inputs.to(self._device) for batch in batches])
        labels = torch.stack([batch.labels.to(self._device) for batch in batches])
        rows = None if len(places) == self._count else torch.tensor(places, device=self._device)
        stacks = self._values, self._buffers, moved
        values, buffers, momenta = (  # of this group: the stacks themselves, or copies that are put back
            stack if rows is None else {name: value[rows] for name, value in stack.items()} for stack in stacks
        )
        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        # "different": each device draws its own dropout.
        losses, activations = vmap(self._loss, randomness="different")(leaves, buffers, inputs, labels)
        # A device's weights are in its own loss alone: the gradient of the sum is every device's own.
        gradients = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
        for (name, value), gradient in zip(values.items(), gradients, strict=True):
            if gradient is None:
                continue  # a layer that the network does not use
            change = momenta[name].mul_(settings.momentum).add_(gradient) if momenta else gradient
            value.add_(change, alpha=-settings.lr)
        if rows is not None:
            for stack, part in zip(stacks, (values, buffers, momenta), strict=True):
                for name, value in part.items():
                    stack[name][rows] = value
        return losses.detach(), activations.detach()

    def _loss(
        self, values: Tensors, buffers: Tensors, inputs: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        def call(name: str, given: torch.Tensor) -> torch.Tensor:
            # tie_weights: looking for shared weights, of which there are none here, takes a sixth of a step.
            part, state = getattr(self._net, name), _below(f"{name}.", values, buffers)
            result: torch.Tensor = functional_call(part, state, (given,), tie_weights=False)
            return result

        activations = call("trunk", inputs)
        return cross_entropy(call("head", activations), labels), activations


def _below(prefix: str, *stacks: Tensors) -> Tensors:
    return {
        name.removeprefix(prefix): value for stack in stacks for name, value in stack.items() if name.startswith(prefix)
    }
