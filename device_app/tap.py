"""The tap: takes the split layer's output in the training forward pass, and offers it.

It needs a module and a source of batches and no trainer, so it serves other people's training loops too: wrap the batches, train
as ever.

    tap = Tap(net.trunk, offer)
    for batch in tap.watch(batches):      # anything with .id and .labels
        loss = criterion(net(batch.inputs), batch.labels); ...
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import nn


class Labelled(Protocol):
    @property
    def id(self) -> int: ...
    @property
    def labels(self) -> torch.Tensor: ...


B = TypeVar("B", bound=Labelled)
Offer = Callable[[int, torch.Tensor, torch.Tensor], None]


class Tap:
    def __init__(self, module: nn.Module, offer: Offer) -> None:
        """`offer(batch id, activations, labels)` gets the module's own output, detached: copy what is kept."""
        self._offer = offer
        self._current: Labelled | None = None
        self._hook = module.register_forward_hook(self._seen)

    def watch(self, batches: Iterable[B]) -> Iterator[B]:
        """The same batches; the first training forward pass after each is that batch's."""
        for batch in batches:
            self._current = batch
            yield batch
        self._current = None

    def close(self) -> None:
        self._hook.remove()

    def _seen(self, module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        batch, self._current = self._current, None
        if batch is not None and module.training:
            self._offer(batch.id, output.detach(), batch.labels)
