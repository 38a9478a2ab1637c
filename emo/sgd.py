"""SGD with momentum, without what `torch.optim.Optimizer` loads at its first step: torch.compile's machinery, 1.5 s of processor
and 68 MiB in every process that trains. The arithmetic is torch's own, so are the bits."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.sgd import sgd


class Sgd:
    """As `torch.optim.SGD`, of `parameters`. `lr` may be changed between steps. `momenta`: parameter -> its buffer, from its
    first step on; empty without momentum."""

    def __init__(
        self, parameters: Iterable[Parameter], lr: float, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        self._parameters = list(parameters)
        self.lr = lr
        self._momentum, self._weight_decay = momentum, weight_decay
        self.momenta: dict[Parameter, Tensor] = {}

    def zero_grad(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """A parameter without a gradient stays as it is."""
        moved = [(each, each.grad) for each in self._parameters if each.grad is not None]
        buffers = [self.momenta.get(each) for each, _ in moved]
        sgd(
            [each for each, _ in moved],
            [gradient for _, gradient in moved],
            buffers,
            has_sparse_grad=any(gradient.is_sparse for _, gradient in moved),
            weight_decay=self._weight_decay,
            momentum=self._momentum,
            lr=self.lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        if self._momentum:
            self.momenta.update(
                (each, buffer) for (each, _), buffer in zip(moved, buffers, strict=True) if buffer is not None
            )
