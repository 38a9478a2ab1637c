"""Local SGD (FedAvg's client side, McMahan et al. 2017) and evaluation. One thread, one seed: the same bits.

A tap sees `train`'s own forward pass through a hook; nothing here changes with it.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.functional import cross_entropy
from torch.optim.sgd import sgd

from emo import seeds
from emo.config import Training
from emo.data.batches import Batch, tensors
from emo.data.dataset import Dataset
from emo.models.split_network import inference


class Sgd:
    """As `torch.optim.SGD` of `parameters`, to the bit, without what `torch.optim.Optimizer` loads at its first step:
    torch.compile's machinery, 1.5 s of processor and 68 MiB in every process that trains.

    `lr` may be changed between steps. `momenta`: parameter -> its buffer, from its first step on; empty without momentum.
    """

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
        pairs = [(parameter, parameter.grad) for parameter in self._parameters if parameter.grad is not None]
        buffers = [self.momenta.get(parameter) for parameter, _ in pairs]
        sgd(
            [parameter for parameter, _ in pairs],
            [gradient for _, gradient in pairs],
            buffers,
            has_sparse_grad=any(gradient.is_sparse for _, gradient in pairs),
            weight_decay=self._weight_decay,
            momentum=self._momentum,
            lr=self.lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        if self._momentum:
            for (parameter, _), buffer in zip(pairs, buffers, strict=True):
                if buffer is not None:
                    self.momenta[parameter] = buffer


def train(net: nn.Module, stream: Iterable[Batch], settings: Training, seed: int = 0) -> Iterator[float]:
    """Train `net` in place, one SGD step on the mean cross-entropy for each batch of `stream`.

    A generator: for each batch it steps and yields the loss from before the step. `net` is put into train mode at the
    first step and left in it. Momentum starts from zero. `settings.epochs` is up to the caller, who makes the stream. A
    loss may be NaN or infinite: the caller judges. `seed`: of what the network draws, as dropout does.
    """
    optimizer = Sgd(net.parameters(), settings.lr, settings.momentum)
    device = _device(net)
    draws = seeds.Draws(device)
    net.train()
    for step, batch in enumerate(stream):
        with draws.seeded(seeds.of(seed, step)):
            optimizer.zero_grad()
            loss = cross_entropy(net(batch.inputs.to(device)), batch.labels.to(device))
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward() untyped
            optimizer.step()
        yield loss.item()


def evaluate(module: nn.Module, dataset: Dataset, batch_size: int = 256) -> tuple[float, float]:
    """(share of right answers, mean cross-entropy) over `dataset`; eval mode, no gradients, modes restored."""
    right, loss = 0, 0.0
    device = _device(module)
    with inference(module):
        for start in range(0, len(dataset.labels), batch_size):
            inputs, labels = (t.to(device) for t in tensors(dataset, slice(start, start + batch_size)))
            logits = module(inputs)
            loss += cross_entropy(logits, labels, reduction="sum").item()
            right += int((logits.argmax(dim=1) == labels).sum())
    return right / len(dataset.labels), loss / len(dataset.labels)


def _device(module: nn.Module) -> torch.device:
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device
