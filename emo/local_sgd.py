"""Local SGD (FedAvg's client side, McMahan et al. 2017) and evaluation.

Knows a module, batches and a dataset. Knows no round, no wire and no tap: a tap sees `train`'s own forward pass
through a hook, and nothing here changes with it. One thread, one seed: the same bits.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from emo import seeds
from emo.config import Training
from emo.data.batches import Batch, tensors
from emo.data.dataset import Dataset
from emo.models.split_network import inference
from emo.sgd import Sgd


def train(net: nn.Module, stream: Iterable[Batch], settings: Training, seed: int = 0) -> Iterator[float]:
    """Train `net` in place, one SGD step on the mean cross-entropy for each batch of `stream`.

    A generator: it takes a batch, steps, and gives that batch's loss, taken before the step; the caller does what
    it likes before the next. `net` is put into train mode at the first step and left in it. Momentum starts from
    zero. `settings.epochs` is the caller's, who makes the stream. A loss may be NaN or infinite: the caller judges.
    `seed`: of what the network draws, as dropout does.
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
